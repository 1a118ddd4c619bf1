"""Errors of the quality package.

QualityError
└── QualityStoreError   (OSError)   the file of samples cannot be opened, read or written
"""


class QualityError(Exception):
    """Anything that the quality package refuses."""


class QualityStoreError(QualityError, OSError):
    """The file of samples cannot be opened, read or written."""
