"""02: a caption for every image."""
