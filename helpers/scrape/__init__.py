"""Notebook 01: get the images of a source, and record where each image came from."""
