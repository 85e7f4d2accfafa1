"""Models: built, loaded and saved with their image processors; their heads and layer groups."""
