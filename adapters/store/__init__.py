"""Adapter versions on disk: immutable folders, manifests, histories."""
