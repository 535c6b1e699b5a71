"""Notebook 02: give every image a caption."""
