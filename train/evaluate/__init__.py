"""Evaluation after training: held-out scores of base and adapter (local.py), fingerprint, held-out questions."""
