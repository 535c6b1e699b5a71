"""Notebook 05: draw pictures with the trained model, judge and report them, and share the model."""
