"""The one door to each library: all that ftkit uses of it and that it does not document.

Nothing else in `ftkit/` and `recipes/` touches private names of these libraries. Each module says why it needs its
names; `tests/test_compat.py` checks that the installed versions still have them.
"""
