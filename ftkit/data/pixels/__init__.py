"""Files -> uint8 pixels -> what a model takes."""
