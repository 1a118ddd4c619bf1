"""Stores on other machines, through fsspec: `RemoteStore` (remote.py)."""
