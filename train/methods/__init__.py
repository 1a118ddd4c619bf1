"""What each method does: the table by name (table.py), what all have in common (method.py), one file a family."""
