"""Notebook 03: select and split the images, and write them with their captions as a dataset."""
