"""Remote stores through fsspec: `RemoteStore` (remote.py)."""
