"""Preparation and quantization of a base model."""
