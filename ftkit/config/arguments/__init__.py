"""The arguments of a run and of an evaluation: dataclasses, each of which checks its own types and forms."""
