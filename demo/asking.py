"""Evaluate adapter and base on the same held-out questions; the base stops once the interval is narrow enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from openai import AsyncOpenAI
from rich.console import Console

from adapters.store.manifest import Manifest
from config.dataset import read_dataset
from config.progress import Progress, print_line, shown
from demo.saved import SavedScores
from loadtest.evaluate import LiveAnswer, LiveScore, evaluate_live
from quality.betting import mean_bounds
from quality.scorers import is_exact_match

CONCURRENCY = 16
NARROW = 0.4
"""Interval width of the gain at which the evaluation of the base stops: 20 points to either side."""
_LOOK_EVERY = 8
_ALPHA = 0.025
"""Of each bound: 95% intervals."""

Kind = Literal["adapter", "base", "few_shot"]


@dataclass(frozen=True)
class Gain:
    """The adapter's exact match minus the base's, of `n` questions that both were asked; -1 to 1."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class DomainScores:
    adapter: LiveScore
    base: LiveScore
    few_shot: LiveScore


@dataclass(frozen=True)
class Examiner:
    """Evaluates on a running server; evaluations completed before an interruption are not repeated."""

    client: AsyncOpenAI
    console: Console
    saved: SavedScores
    limit: int | None = None

    async def examine(self, dataset_folder: Path, adapter: Manifest, base_name: str) -> DomainScores:
        """Evaluate the adapter on all held-out questions, then the base until the interval is narrow, twice.

        Raises:
            EvaluationError: The server did not answer.
        """
        subject = f"{adapter.digest} {read_dataset(dataset_folder).dataset_sha256} {self.limit}"
        ask = partial(self._ask, dataset_folder, subject)
        score = await ask("adapter", adapter.name, lambda answers: False)
        base = await ask("base", base_name, EnoughAsked(score.answers))
        return DomainScores(score, base, await ask("few_shot", base_name, EnoughAsked(score.answers)))

    async def _ask(
        self, folder: Path, subject: str, kind: Kind, model: str, is_enough: Callable[[Sequence[LiveAnswer]], bool]
    ) -> LiveScore:
        domain = folder.name
        if (score := self.saved.read(f"{domain}-{kind}", subject)) is not None:
            print_line(self.console, f"{domain} questions to {model}: already evaluated before the interruption")
            return score
        total = min(self.limit or 10**9, read_dataset(folder).num_test)
        label = f"{domain} questions to {model}{' with examples' if kind == 'few_shot' else ''}"
        progress = Progress(label, total, "answers" if kind == "adapter" else "answers at most")
        with shown(progress, self.console):
            score = await evaluate_live(
                self.client,
                folder,
                model,
                few_shot=kind == "few_shot",
                limit=self.limit,
                concurrency=CONCURRENCY,
                on_answer=progress.advance,
                is_enough=is_enough,
            )
        self.saved.write(f"{domain}-{kind}", subject, score)
        return score


class EnoughAsked:
    """Whether the gain's interval is narrow enough; checked repeatedly, which the interval allows."""

    def __init__(self, adapter: Sequence[LiveAnswer]) -> None:
        self._adapter = adapter
        self._next_look = _LOOK_EVERY

    def __call__(self, base: Sequence[LiveAnswer]) -> bool:
        if len(base) < self._next_look:
            return False
        self._next_look = len(base) + _LOOK_EVERY
        found = gain(self._adapter, base)
        return found.high - found.low <= NARROW


def gain(adapter: Sequence[LiveAnswer], base: Sequence[LiveAnswer]) -> Gain:
    """Gain of the adapter over the base on the questions that both answered, in the same order.

    The interval holds at every number of questions at once, so one may stop when it is narrow.
    """
    pairs = [_is_right(one) - _is_right(other) for one, other in zip(adapter, base, strict=False)]
    low, high = mean_bounds([(pair + 1) / 2 for pair in pairs], _ALPHA, _ALPHA)
    return Gain(sum(pairs) / max(len(pairs), 1), 2 * low - 1, 2 * high - 1, len(pairs))


def share_bounds(answers: Sequence[LiveAnswer]) -> tuple[float, float]:
    """95% interval of the share of correct answers; valid at all numbers of answers simultaneously."""
    return mean_bounds([float(_is_right(answer)) for answer in answers], _ALPHA, _ALPHA)


def _is_right(answer: LiveAnswer) -> bool:
    return is_exact_match(answer.text, answer.expected)
