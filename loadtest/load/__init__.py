"""The load generator: workload, arrivals, client, records."""
