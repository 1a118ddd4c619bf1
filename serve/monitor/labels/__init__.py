"""Human labels: import, export, agreement."""
