"""Training methods: what a recipe configures."""
