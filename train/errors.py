"""Errors of training. The command line shows their message in one line.

TrainError
├── PrepareBaseError   (ValueError)    a base that cannot be prepared as asked
├── DataError          (ValueError)    a data source that cannot become a data set
├── RecipeError        (ValueError)    a recipe that cannot be trained or could not be served
└── ResumeError        (RuntimeError)  a checkpoint that does not belong to this data set and recipe
"""


class TrainError(Exception):
    """Anything that stops `lorikeet base`, `data` or `train`."""


class PrepareBaseError(TrainError, ValueError):
    """A base that cannot be prepared as asked."""


class DataError(TrainError, ValueError):
    """A data source that cannot become a data set."""


class RecipeError(TrainError, ValueError):
    """A recipe that cannot be trained, or whose adapter could not be served."""


class ResumeError(TrainError, RuntimeError):
    """A checkpoint that does not belong to this data set and recipe."""
