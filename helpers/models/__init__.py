"""Find, safely open, convert and compare model files."""
