"""Human labels: `Labelling`, and their table as CSV."""
