"""Training objectives and their losses."""
