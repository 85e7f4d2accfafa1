"""To the Hub: the model card, the check of what leaves, and the push."""
