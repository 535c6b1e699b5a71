"""Figures for a person: image grids, curves, and a sweep's trials."""
