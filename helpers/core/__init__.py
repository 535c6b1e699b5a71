"""The modules that the other packages of `helpers` use: run folder, row files, atomic writes, redaction, errors."""
