"""Storage of traffic samples: `QualityStore`, an SQLite file (store.py), its records, schema and privacy modes."""
