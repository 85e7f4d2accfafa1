"""The one door to each library: the private and undocumented names that ftkit uses, each with the reason.

Nothing else in `ftkit/` and `recipes/` touches such names. `tests/test_compat.py` checks that the installed versions
still have them.
"""
