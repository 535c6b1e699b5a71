"""What machine this is: what it has, what it keeps, and what it must be told."""
