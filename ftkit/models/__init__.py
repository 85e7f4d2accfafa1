"""Models: built, loaded and saved with their image processors; and what they are made of."""
