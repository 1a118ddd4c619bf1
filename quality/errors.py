"""Errors of the quality package.

QualityError
├── QualityStoreError   (OSError)     the file of samples cannot be opened, read or written
└── MetricError         (ValueError)  a metric that cannot be used as it is set
"""


class QualityError(Exception):
    """Base class of the quality package's errors."""


class QualityStoreError(QualityError, OSError):
    """The file of samples cannot be opened, read or written."""


class MetricError(QualityError, ValueError):
    """A metric that cannot be used as it is set."""
