"""Held-out questions asked of a live server or offline, saved, scored, and compared item by item."""
