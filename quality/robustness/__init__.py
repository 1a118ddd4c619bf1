"""Perturbed copies of questions, seeded, and the figures of their answers; start at `perturb`."""
