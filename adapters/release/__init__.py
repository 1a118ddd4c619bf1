"""Which version answers: aliases, traffic splits, and trials of a canary."""
