"""Datasets: sources, splits, duplicates, encoding."""
