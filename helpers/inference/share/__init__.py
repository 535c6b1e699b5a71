"""What leaves the run: one-file weights, the model's card, the hub."""
