"""01: images and where they come from."""
