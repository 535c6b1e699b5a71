"""Judging: how far the style has moved."""
