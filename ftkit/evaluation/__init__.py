"""Evaluation: predictions -> metrics -> report."""
