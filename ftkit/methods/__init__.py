"""Methods: a method is a plan, a list of stages."""
