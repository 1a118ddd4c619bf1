"""The load generator: workload, arrivals, transport, records. `Runner` measures one run."""
