"""Which versions are in the engine: loads, checks before an answer, eviction, quarantine.

`Residency`, `StoreWatcher`.
"""
