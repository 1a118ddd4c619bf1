"""What one request may ask for, and what it gets by default: `check_limits`, `fill_defaults`."""
