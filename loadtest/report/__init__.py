"""Statistics, comparisons, objectives, and reports of load tests."""
