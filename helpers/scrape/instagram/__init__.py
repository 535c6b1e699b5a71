"""Instagram by instaloader: what one of the sources needs."""
