"""Runs that search: capacity under an SLO, a sweep of rates, the adapter cliff."""
