"""Errors of a load test that keep it from starting. What goes wrong with a request is data, never an exception.

LoadtestError       (Exception)
    TraceError      (ValueError)   a trace file that cannot be replayed
    TargetError     (ValueError)   a server that cannot be reached or does not know the models
    SloError        (ValueError)   a service level objective that does not say what it should
    RunFileError    (ValueError)   a `run.json` that is missing or broken
    SweepError      (ValueError)   a search or sweep with impossible bounds
"""


class LoadtestError(Exception):
    """A load test that cannot start."""


class TraceError(LoadtestError, ValueError):
    """A trace file that cannot be replayed."""


class TargetError(LoadtestError, ValueError):
    """A server that cannot be reached, or does not know the models."""


class SloError(LoadtestError, ValueError):
    """A service level objective that does not say what it should."""


class RunFileError(LoadtestError, ValueError):
    """A `run.json` that is missing or broken."""


class SweepError(LoadtestError, ValueError):
    """A search or sweep with impossible bounds."""
