"""Routing state: `current_aliases`, the traffic split (traffic.py), and canary trials (trials.py)."""
