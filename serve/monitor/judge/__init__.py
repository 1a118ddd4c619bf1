"""Judges: asking a model to score answers."""
