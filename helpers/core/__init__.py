"""What every room shares: a run's folder and rows, files that survive a kill, secrets kept out, errors in a line."""
