"""Augmentation of batches of training images."""
