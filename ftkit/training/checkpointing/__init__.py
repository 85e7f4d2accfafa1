"""Checkpoints that are complete or invisible, and the run's folder that holds them."""
