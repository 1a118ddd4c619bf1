"""Errors of training. The command line shows their message in one line.

TrainError
├── PrepareBaseError   (ValueError)    a base that cannot be prepared as requested
├── DataError          (ValueError)    a data source that cannot become a data set
├── RecipeError        (ValueError)    a recipe that cannot be trained or served
├── ExportError        (ValueError)    a version that cannot be exported or combined as requested
└── ResumeError        (RuntimeError)  a checkpoint that does not belong to this data set and recipe
"""


class TrainError(Exception):
    """Base class of the errors of `lorikeet base`, `data`, `train` and `export`."""


class PrepareBaseError(TrainError, ValueError):
    """A base that cannot be prepared as requested."""


class DataError(TrainError, ValueError):
    """A data source that cannot become a data set."""


class RecipeError(TrainError, ValueError):
    """A recipe that cannot be trained, or whose adapter vLLM cannot serve."""


class ExportError(TrainError, ValueError):
    """A version that cannot be exported or combined as requested."""


class ResumeError(TrainError, RuntimeError):
    """A checkpoint that does not belong to this data set and recipe."""
