"""What is done to a batch of training images."""
