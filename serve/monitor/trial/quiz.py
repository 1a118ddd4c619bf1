"""A quiz: one set of held-out questions for one version, or for both versions of a trial."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

from adapters.reference import Target
from adapters.release.trials import Trial
from quality.held_out import HeldOutSet
from quality.metrics.item import Metric


class Urgency(IntEnum):
    """Priority of a quiz."""

    TRIAL = 0
    STABLE = 1
    OTHER = 2


class HeldOutListener(Protocol):
    """Callbacks for the scores of a canary and its stable version; called on the event loop."""

    def questions_counted(self, name: str, trial: Trial) -> Collection[int] | None:
        """Questions that need not be asked any more; None: too early to ask."""

    def question_scored(self, name: str, trial: Trial, question: int, scores: tuple[float, float]) -> None: ...


class Due(NamedTuple):
    """How urgently one version, or a trial's two, are to be asked."""

    urgency: Urgency
    trial: Trial | None = None


@dataclass
class Quiz:
    """One set of questions for one version, or for stable and canary together."""

    targets: tuple[Target, ...]
    held_out: HeldOutSet
    metric: Metric
    """What scores an answer, 0 to 1."""
    is_own: tuple[bool, ...]
    """By target: whether these are its own questions, so that its scores are worth keeping."""
    left: list[int]
    """Questions not asked yet, in random order, the next one last."""
    due: Due
    scores: dict[Target, dict[int, float]] = field(default_factory=dict)
    asked_s: dict[int, float] = field(default_factory=dict)
    """When a question was last put to a version alone, seconds since the epoch."""
    asked_at: int = 0
    """Number of its last question, of all that were asked."""


@dataclass(frozen=True)
class Scored:
    """One question, answered by all that were asked; `scores` is None where it could not be put to them."""

    quiz: Quiz
    question: int
    scores: tuple[float, ...] | None
