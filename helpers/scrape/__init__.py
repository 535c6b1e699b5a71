"""Notebook 01: get the images of a source and record where each came from."""
