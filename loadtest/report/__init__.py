"""What a run's records say: statistics, comparison, SLOs, plots."""
