"""The table of what each version's evaluation found before it was published."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.scores import Score
from serve.monitor.report.figures import AdapterFigures
from serve.monitor.report.words import NONE

MOST_VERSIONS = 6
_MOST_ROWS = 60


@dataclass(frozen=True)
class EvaluationTable:
    """Figures by key (rows) and version (columns), as text; `num_left_out` keys are not shown."""

    versions: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    num_left_out: int


def evaluation_table(adapter: AdapterFigures) -> EvaluationTable | None:
    """The newest versions that have figures, and the keys in the order of the newest; None without any."""
    known = sorted((one for one in adapter.versions if one.figures), key=lambda one: one.version)[-MOST_VERSIONS:]
    if not known:
        return None
    by_version = [{figure.key: figure.adapter for figure in one.figures} for one in known]
    keys = list(dict.fromkeys(key for figures in reversed(by_version) for key in figures))
    rows = tuple((key, _cells(key, by_version)) for key in keys[:_MOST_ROWS])
    return EvaluationTable(tuple(one.version for one in known), rows, len(keys) - len(rows))


def _cells(key: str, by_version: Sequence[dict[str, Score]]) -> tuple[str, ...]:
    return tuple(_text(figures[key]) if key in figures else NONE for figures in by_version)


def _text(score: Score) -> str:
    return f"{score.value:.3f} ({score.ci_low:.2f}–{score.ci_high:.2f})"
