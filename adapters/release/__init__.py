"""Which version answers: `current_aliases`, traffic between versions (traffic.py), and a canary's trial (trials.py)."""
