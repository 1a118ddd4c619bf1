"""Adapters made ready for the engine outside of it: packed by `Stager` (staging.py), mapped by the worker."""
