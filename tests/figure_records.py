"""Figures as evaluation gives them, of chosen values."""

from adapters.scores import Score
from adapters.store.evaluation_records import FigureKind, FigureRecord


def figure(
    metric: str,
    base: float,
    adapter: float,
    *,
    kind: FigureKind = "metric",
    part: str = "",
    half: float = 0.04,
    n: int = 240,
) -> FigureRecord:
    gain = adapter - base
    return FigureRecord(
        kind=kind,
        metric=metric,
        part=part,
        adapter=Score(value=adapter, ci_low=adapter - half, ci_high=adapter + half, n=n),
        base=Score(value=base, ci_low=base - half, ci_high=base + half, n=n),
        difference=Score(value=gain, ci_low=gain - half, ci_high=gain + half, n=n),
        p=0.001 if abs(gain) > half else 0.4,
    )
