"""A plan: prepared, checked, run stage by stage, resumed."""
