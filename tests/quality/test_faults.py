"""Faults seeded into long synthetic streams: how soon drift sees each, and how often it sees one that is not there.

Run with `pytest -s` to see delays and the false-alarm rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from quality.drift import DriftBaseline, Exchange

WINDOW = 100
NUM_BASELINE = 240
ALPHA = 0.01
HEALTHY_LOOKS = 20
"""Before a fault begins; by then a look may spend a 42,000th."""

_ZIPF = 1 / np.arange(1, 401)
_ZIPF /= _ZIPF.sum()


@dataclass(frozen=True)
class Domain:
    """Prompts: a template's tokens, then a question in Zipf's frequencies. Answers: one of a few, surely given."""

    first_word: int = 1000
    template: tuple[int, ...] = tuple(range(24))
    first_answer: int = 5000
    num_answers: int = 20
    num_extra_tokens: float = 0.0
    """Of an answer, on average, drawn from anywhere: what noise in the weights does."""
    mean_logprob: float = -0.1

    def exchanges(self, rng: np.random.Generator, num: int) -> list[Exchange]:
        words = _pieces(rng, num, 4, 24, lambda size: self.first_word + rng.choice(400, size, p=_ZIPF))
        extra = _pieces(rng, num, 0, 1 + int(2 * self.num_extra_tokens), lambda size: rng.integers(0, 49152, size))
        answers = rng.choice(self.num_answers, num, p=_ZIPF[: self.num_answers] / _ZIPF[: self.num_answers].sum())
        logprobs = self.mean_logprob * rng.gamma(1.0, size=num)
        return [
            Exchange.model_construct(
                prompt_tokens=(*self.template, *question),
                completion_tokens=(*range(self.first_answer + 7 * answer, self.first_answer + 8 * answer + 6), *noise),
                mean_logprob=logprob,
                embedding=None,
            )
            for question, answer, noise, logprob in zip(words, answers.tolist(), extra, logprobs.tolist(), strict=True)
        ]


Fault = Callable[[np.random.Generator, int], list[Exchange]]

HEALTHY = Domain()
OTHER = Domain(first_word=1200)


def mix(share: float) -> Fault:
    """So many of the questions are another domain's; the adapter answers them less surely."""

    def exchanges(rng: np.random.Generator, num: int) -> list[Exchange]:
        num_other = int(rng.binomial(num, share))
        other = replace(OTHER, mean_logprob=-0.5).exchanges(rng, num_other)
        return [*HEALTHY.exchanges(rng, num - num_other), *other]

    return exchanges


FAULTS: dict[str, Fault] = {
    "strong noise in the weights": replace(HEALTHY, num_extra_tokens=8, mean_logprob=-2.0).exchanges,
    "weak noise in the weights": replace(HEALTHY, mean_logprob=-0.25).exchanges,
    "a swapped adapter": replace(HEALTHY, first_answer=9000, num_answers=8).exchanges,
    "a template without its system turn": replace(HEALTHY, template=HEALTHY.template[12:]).exchanges,
    "a template in other words": replace(HEALTHY, template=tuple(range(100, 124))).exchanges,
    "all questions of another domain": mix(1.0),
    "half of the questions of another domain": mix(0.5),
}
SLOW = {"weak noise in the weights": 6, "half of the questions of another domain": 3}
"""Windows that these may take; the others must show in the first."""


def _pieces(
    rng: np.random.Generator, num: int, low: int, high: int, draw: Callable[[int], NDArray[np.int64]]
) -> list[list[int]]:
    """So many lists of `low` to `high` - 1 tokens, drawn at once."""
    lengths = rng.integers(low, high, num)
    ends = np.cumsum(lengths).tolist()
    tokens = draw(int(lengths.sum())).tolist()
    return [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def delay_of(fault: Fault, rng: np.random.Generator, *, num_baseline: int, window: int) -> tuple[int, str]:
    """Exchanges until drift is seen, of a fault that begins after healthy looks, and by which features."""
    baseline = DriftBaseline(HEALTHY.exchanges(rng, num_baseline))
    look = next(
        look
        for k in range(HEALTHY_LOOKS + 1, HEALTHY_LOOKS + 100)
        if (look := baseline.look(fault(rng, window), k, ALPHA)).is_drift
    )
    features = ", ".join(feature.name for feature in look.features if feature.is_drift)
    return (look.look - HEALTHY_LOOKS) * window, features


@pytest.mark.slow
def test_healthy_streams_are_called_drifting_no_more_often_than_alpha_allows() -> None:
    """Fifty versions, each with its own baseline and thirty looks; what a stream may spend at all is 1%."""
    rng, num_streams, num_looks = np.random.default_rng(31), 50, 30
    alarms = []
    for _ in range(num_streams):
        baseline = DriftBaseline(HEALTHY.exchanges(rng, NUM_BASELINE))
        looks = [baseline.look(HEALTHY.exchanges(rng, WINDOW), k, ALPHA) for k in range(1, num_looks + 1)]
        alarms.append(sum(look.is_drift for look in looks))
    print(
        f"\n{sum(alarms)} alarms in {num_streams * num_looks} looks at {WINDOW} healthy exchanges; "
        f"{sum(map(bool, alarms))} of {num_streams} streams had one (alpha {ALPHA} a stream)"
    )
    assert sum(map(bool, alarms)) <= 2  # three have probability 0.014 where alpha is wholly spent


@pytest.mark.slow
def test_one_very_long_healthy_stream_raises_no_alarm() -> None:
    rng, num_looks = np.random.default_rng(32), 600
    baseline = DriftBaseline(HEALTHY.exchanges(rng, NUM_BASELINE))
    alarms = [k for k in range(1, num_looks + 1) if baseline.look(HEALTHY.exchanges(rng, WINDOW), k, ALPHA).is_drift]
    print(f"\n{len(alarms)} alarms in one stream of {num_looks} looks, {num_looks * WINDOW} exchanges")
    assert alarms == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_within_a_window_or_a_few(fault: str) -> None:
    """In each of ten streams."""
    rng = np.random.default_rng(33)
    delays, features = zip(
        *[delay_of(FAULTS[fault], rng, num_baseline=NUM_BASELINE, window=WINDOW) for _ in range(10)], strict=True
    )
    print(f"\n{fault}: seen after {np.median(delays):.0f} exchanges, at most {max(delays)}, by {max(features)}")
    assert max(delays) <= SLOW.get(fault, 1) * WINDOW


@pytest.mark.slow
def test_a_small_share_of_other_questions_needs_larger_windows_and_a_larger_baseline() -> None:
    rng = np.random.default_rng(34)
    delays = [delay_of(mix(0.3), rng, num_baseline=480, window=400)[0] for _ in range(5)]
    print(f"\n3 questions of 10 of another domain, windows of 400, a baseline of 480: seen after {sorted(delays)}")
    assert max(delays) <= 1600
