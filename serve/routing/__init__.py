"""Resolve model names to versions (`Resolver`), and send copies to a canary in shadow mode (`Shadow`)."""
