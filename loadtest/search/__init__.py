"""Searches over load: capacity, sweep, cliff."""
