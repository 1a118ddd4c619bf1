"""Errors of training. The command line shows their message in one line.

TrainError
├── PrepareBaseError   (ValueError)    a base that cannot be prepared as requested
├── DataError          (ValueError)    a data source that cannot become a data set
│   └── NothingLeftError               cleaning leaves no row to train on
├── RecipeError        (ValueError)    a recipe that cannot be trained or served
├── ExportError        (ValueError)    a version that cannot be exported or combined as requested
├── ConversionError    (ValueError)    a trained adapter that is too far from its converted form
├── DivergenceError    (ArithmeticError)  a run whose loss or gradient grows without bound
├── TrainingMemoryError (MemoryError)  a run that does not fit into memory
├── TrackingError      (RuntimeError)  a tracker of `report_to` that cannot be used
└── ResumeError        (RuntimeError)  a checkpoint that does not belong to this data set and recipe
"""


class TrainError(Exception):
    """Base class of the errors of `lorikeet base`, `data`, `train` and `export`."""


class PrepareBaseError(TrainError, ValueError):
    """A base that cannot be prepared as requested."""


class DataError(TrainError, ValueError):
    """A data source that cannot become a data set."""


class NothingLeftError(DataError):
    """All training rows are near copies of held-out ones."""


class RecipeError(TrainError, ValueError):
    """A recipe that cannot be trained, or whose adapter vLLM cannot serve."""


class ExportError(TrainError, ValueError):
    """A version that cannot be exported or combined as requested."""


class ConversionError(TrainError, ValueError):
    """A trained adapter whose converted form, which would be served, differs too much from it."""


class DivergenceError(TrainError, ArithmeticError):
    """A run whose loss or gradient is not finite, or grows without bound."""


class TrainingMemoryError(TrainError, MemoryError):
    """A run that does not fit into memory."""


class TrackingError(TrainError, RuntimeError):
    """A tracker of `report_to` that cannot be used."""


class ResumeError(TrainError, RuntimeError):
    """A checkpoint that does not belong to this data set and recipe."""
