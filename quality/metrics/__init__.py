"""Metrics of answers, their figures with intervals, and paired comparisons. Pure; sends no request."""
