"""Captions by Claude: what one of the captioners needs."""
