"""Whatever is drawn for a person."""
