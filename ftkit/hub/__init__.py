"""To the Hub: the model card, the check before a push, and the push."""
