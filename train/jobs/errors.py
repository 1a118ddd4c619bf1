"""Errors of jobs; `code` and `param` are those of OpenAI's error object.

TrainError
└── InvalidJobError (ValueError)  a job that can never be trained as it is
"""

from train.errors import TrainError


class InvalidJobError(TrainError, ValueError):
    """A job whose files, hyperparameters or recipe cannot be used."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
