"""The Claude captioner: prompts, requests, prices, a budget, and the validation of answers."""
