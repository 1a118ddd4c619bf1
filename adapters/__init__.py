"""The adapter artifact: manifest, immutable store, aliases, lint, integrity. Imports no package of ours."""
