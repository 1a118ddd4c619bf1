"""Analysis of a run's records: statistics, comparison, SLOs, plots."""
