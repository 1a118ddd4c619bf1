"""Adapter stores on other machines."""
