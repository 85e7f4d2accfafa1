"""Reads names, folders, tables and archives into splits of images and labels."""
