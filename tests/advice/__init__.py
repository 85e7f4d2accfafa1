"""Situations in which ftkit recommends settings: each module lists those of its part as `CASES`."""
