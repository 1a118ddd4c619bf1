"""The trial of a canary: evidence, held-out questions, and the controller that acts on a verdict. `Controller`."""
