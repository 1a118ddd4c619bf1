"""The adapter artifact: manifest, immutable store, aliases, lint and integrity. Imports no other package of ours."""
