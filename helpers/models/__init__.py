"""Models as files: found, opened with care, converted, compared."""
