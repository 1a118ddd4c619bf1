"""What PEFT refuses of a method's settings on the layers of a base, in one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import peft

from config.method import MethodSettings
from train.errors import RecipeError, TrainError


@contextmanager
def peft_errors_named(settings: MethodSettings) -> Iterator[None]:
    """Whether a block size divides a layer, for instance, PEFT tells only when it makes the layer.

    Raises:
        RecipeError: PEFT raised an error; others pass.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        if isinstance(error, TrainError) or not _is_raised_in_peft(error):
            raise
        given = settings.model_dump(mode="json", include={"name", *settings.model_fields_set})
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(
            f"PEFT cannot use `method` {given!r} on this base: {reason}. See docs/training.md#methods."
        ) from error


def _is_raised_in_peft(error: BaseException) -> bool:
    folder = str(peft.__path__[0])
    return any(frame.filename.startswith(folder) for frame in traceback.extract_tb(error.__traceback__))
