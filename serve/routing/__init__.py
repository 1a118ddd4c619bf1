"""From a model name to the version that answers."""
