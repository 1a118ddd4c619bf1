"""The adapter artifact: manifest, immutable store, aliases, lint, integrity. Imports no other package of ours."""
