"""What leaves the run: weights for other programs, the model card, and the push to the hub."""
