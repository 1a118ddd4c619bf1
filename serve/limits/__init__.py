"""Request limits and request defaults: `check_limits`, `fill_defaults`."""
