"""The trial of a canary: evidence, held-out questions, verdict."""
