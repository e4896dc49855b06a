"""A stage in training: model and engine between instructions. DeepSpeed lives here."""
