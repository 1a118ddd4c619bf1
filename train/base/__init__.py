"""Base models as served: `prepare_base` (prepare.py), and their quantization."""
