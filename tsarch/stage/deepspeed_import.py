"""DeepSpeed, imported at once; elsewhere it is where it is first used."""

import deepspeed  # noqa: F401
