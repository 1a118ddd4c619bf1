"""The demo: the whole loop on real data, with the commands that a user would run."""
