"""The Claude captioner: prompts, requests, validation of answers, prices and budget."""
