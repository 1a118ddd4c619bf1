"""A metric of one's own: a function of a Python file, `python: score.py:polite`."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from quality.errors import MetricError
from quality.metrics.item import Item, LeftOut


@dataclass(frozen=True)
class Custom:
    """`function(answer, expected, question) -> float`; what it raises leaves the item out, and the rest goes on."""

    name: str
    function: Callable[[str, str, str], Any]
    kind: Literal["mean"] = "mean"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = None

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [self._score(item) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)

    def _score(self, item: Item) -> float | LeftOut:
        try:
            score = float(self.function(item.answer, item.expected, item.question))
        except Exception as error:  # boundary: the user's code may raise what it likes
            return LeftOut(f"{type(error).__name__}: {error}")
        return score if math.isfinite(score) else LeftOut(f"it returned {score}")


def load_custom(reference: str, folder: Path) -> Custom:
    """Import `path.py:function`; a relative path is taken from `folder`. It runs the file.

    Raises:
        MetricError: No such file or function, or the file raises.
    """
    file, _, name = reference.rpartition(":")
    path = folder / file
    if not file.endswith(".py") or not name.isidentifier():
        raise MetricError(f"metric `python: {reference}` must be a file and a function, as `score.py:polite`.")
    if not path.is_file():
        raise MetricError(f"metric `python: {reference}`: file {path} not found.")
    spec = importlib.util.spec_from_file_location(f"lorikeet_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # boundary: the user's code
        raise MetricError(f"metric `python: {reference}`: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise MetricError(f"metric `python: {reference}`: {path} has no function {name!r}.")
    return Custom(name, function)
