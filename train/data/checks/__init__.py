"""Checks of examples: what a person should look at before training.

Each is a pure function that returns counts and findings; `clean_pii` (pii.py) also redacts or drops rows.
"""
