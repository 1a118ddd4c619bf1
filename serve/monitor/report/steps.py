"""Figures over time: rows of the quality store in steps of one length, forty at most."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean, median
from typing import TypeVar

from adapters.scores import bounded_score
from quality.samples.records import HeldOutScore, Sample
from serve.monitor.report.figures import HeldOutStep, SignalStep

_MAX_STEPS = 40
_SHORTEST_STEP_S = 10.0

RowT = TypeVar("RowT", Sample, HeldOutScore)


def held_out_steps(scores: Sequence[HeldOutScore]) -> Iterator[HeldOutStep]:
    """How the accuracy became what it is: after each step, over all questions asked so far.

    A version never changes, so a question that is asked again counts once, with its latest score.
    """
    latest: dict[int, float] = {}
    for rows in _steps(scores):
        latest |= {row.question: row.score for row in rows}
        yield HeldOutStep(at_s=rows[-1].at_s, accuracy=bounded_score(list(latest.values())))


def signal_steps(samples: Sequence[Sample]) -> Iterator[SignalStep]:
    """Mean signals of the answers in each step."""
    for rows in _steps(samples):
        logprobs = [row.signals.mean_logprob for row in rows if row.signals.mean_logprob is not None]
        ttfts_s = [row.ttft_s for row in rows if row.ttft_s is not None]
        yield SignalStep(
            at_s=fmean(row.at_s for row in rows),
            n=len(rows),
            mean_logprob=fmean(logprobs) if logprobs else None,
            refused=fmean(row.signals.is_refusal for row in rows),
            repetition=fmean(row.signals.seq_rep_4 for row in rows),
            num_tokens=fmean(row.signals.num_tokens for row in rows),
            ttft_s=median(ttfts_s) if ttfts_s else None,
        )


def _steps(rows: Sequence[RowT]) -> Iterator[list[RowT]]:
    """The rows, oldest first, in stretches of one length; empty ones are left out."""
    if not rows:
        return
    start_s = rows[0].at_s
    width_s = max(_SHORTEST_STEP_S, (rows[-1].at_s - start_s) / _MAX_STEPS)

    def number(row: RowT) -> int:
        """The newest row ends the last step, and begins none of its own."""
        return min(int((row.at_s - start_s) / width_s), _MAX_STEPS - 1)

    for _, step in groupby(rows, number):
        yield list(step)
