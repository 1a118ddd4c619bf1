"""Cleaning steps: pure functions from examples to a `StepResult` (train/data/steps.py)."""
