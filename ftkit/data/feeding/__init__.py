"""Splits as batches: decoded once into a tensor, or streamed."""
