"""Cleaning steps, from examples to the result of a step; start at `drop_exact_duplicates` and `drop_contaminated`."""
