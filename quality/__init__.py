"""Answer quality: scorers, intervals, drift, verdicts, samples. Imports no other package of ours."""
