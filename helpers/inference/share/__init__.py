"""Share a model: export weights for other programs, write the model card, and push to the Hub."""
