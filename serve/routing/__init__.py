"""From the model name of a request to a version: `Resolver`, and copies for a canary in shadow mode (`Shadow`)."""
