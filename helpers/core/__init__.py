"""The modules that all packages of `helpers` share: run folders, rows of data, atomic writes, redaction, errors."""
