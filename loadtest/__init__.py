"""Load tests, evaluation and benchmarks of a server from outside, over HTTP only."""
