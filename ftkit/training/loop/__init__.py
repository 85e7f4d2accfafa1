"""The `Trainer`, and what a step of training is made of."""
