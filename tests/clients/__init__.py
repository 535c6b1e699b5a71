"""The exports in the programs that read them, by those programs' own code."""
