"""The project's benchmarks: one measuring code, ratios against a baseline of the same run."""
