"""The Instagram source: images of an account or of single posts, downloaded with instaloader."""
