"""The private and undocumented names that ftkit uses: one module per library, each name with its reason.

Nothing else in `ftkit/` and `recipes/` uses such names. `tests/test_compat.py` checks that the installed versions
still have them.
"""
