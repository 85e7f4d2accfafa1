"""The `Trainer` and the parts of a training step."""
