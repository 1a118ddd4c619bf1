"""Versions on disk: immutable folders, manifests, histories.

Start at `AdapterStore` (store.py); `Manifest` describes a version.
"""
