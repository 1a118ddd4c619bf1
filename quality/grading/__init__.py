"""What graders of reinforcement jobs compute, as pure functions; `config/graders.py` has their settings."""
