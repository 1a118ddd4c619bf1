"""Data sets: sources, duplicates and splits (`build_dataset`, build.py), and their tokens (encode.py)."""
