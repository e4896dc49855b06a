"""A process's stages: running instructions, its part of checkpoints, what it says of itself."""
