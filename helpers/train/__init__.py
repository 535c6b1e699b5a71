"""04: the fine-tune. loop.py is the place to begin reading."""
