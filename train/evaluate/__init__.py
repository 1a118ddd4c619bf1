"""Base and adapter after training: scores on held-out examples (local.py), fingerprint, held-out questions."""
