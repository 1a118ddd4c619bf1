"""Errors of a cluster.

ClusterError               (RuntimeError)       ends the command before there is traffic
"""


class ClusterError(RuntimeError):
    """The cluster cannot serve this configuration."""
