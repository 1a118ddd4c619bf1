"""The SQLite store of samples, and what it holds."""
