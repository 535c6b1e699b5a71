"""What every room uses: the run folder and its rows, atomic files, redaction, one-line errors."""
