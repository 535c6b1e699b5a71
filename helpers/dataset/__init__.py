"""03: what is trained on, and what is held out."""
