"""Which adapters are loaded, and the checks before one answers."""
