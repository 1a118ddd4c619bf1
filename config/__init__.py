"""Typed configuration: frozen pydantic models, and the YAML files that fill them."""
