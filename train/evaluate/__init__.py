"""Evaluation of an adapter after training."""
