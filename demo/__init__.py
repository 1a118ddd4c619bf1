"""The demo: the whole loop on real input, by the commands that a user would type."""
