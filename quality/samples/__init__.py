"""What is kept of traffic: `QualityStore`, an SQLite file (store.py), its records, schema and privacy modes."""
