"""Errors that keep a load test from starting. Failed requests are recorded, not raised.

LoadtestError       (Exception)
    TraceError      (ValueError)   a trace file that cannot be replayed
    TargetError     (ValueError)   a server that cannot be reached or does not know the models
    SloError        (ValueError)   an invalid service level objective
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
    """An invalid service level objective."""


class RunFileError(LoadtestError, ValueError):
    """A `run.json` that is missing or broken."""


class SweepError(LoadtestError, ValueError):
    """A search or sweep with impossible bounds."""
