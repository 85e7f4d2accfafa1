"""Training: the `Trainer` subclass, and running a plan stage by stage."""
