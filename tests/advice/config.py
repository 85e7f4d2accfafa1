"""Situations in which the configuration is refused, and settings are recommended."""

CASES = {}
