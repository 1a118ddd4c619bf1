"""What the quality store keeps: one frozen record per row."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from quality.signals import Signals

_AGAINST = " against "


@dataclass(frozen=True)
class Sample:
    """One answered request, as far as the privacy mode keeps it."""

    id: int
    """0 until a store has given one; never used twice."""
    at_s: float
    """When it ended, seconds since the epoch; so are all `at_s` of this module."""
    request_id: str | None
    adapter: str
    version: int
    """0: the base model."""
    tenant_hash: str | None
    source: str
    privacy: str
    num_prompt_tokens: int
    ttft_s: float | None
    e2e_s: float
    signals: Signals
    prompt: str | None = None
    answer: str | None = None
    messages: tuple["Turn", ...] = ()
    """The conversation that was answered; empty where it is not kept, or held more than text."""
    request_hash: str | None = None
    """Keyed hashes of the tenant and the id of the request, or of its answer: only who asked can name the sample."""
    response_hash: str | None = None


class Turn(NamedTuple):
    """One turn of a conversation, text only."""

    role: str
    content: str


@dataclass(frozen=True)
class Grade:
    """What a judge says of a sample; a later one of the same judge replaces it.

    Raises:
        ValueError: The score is not 0 to 1.
    """

    sample_id: int
    judge: str
    at_s: float
    score: float
    reason: str = ""

    def __post_init__(self) -> None:
        _check_score(self.score)


@dataclass(frozen=True)
class Label:
    """What a person says of a sample; a later one of the same person replaces it.

    Raises:
        ValueError: The score is not 0 to 1.
    """

    sample_id: int
    who: str
    at_s: float
    score: float
    note: str = ""

    def __post_init__(self) -> None:
        _check_score(self.score)


@dataclass(frozen=True)
class Feedback:
    """What a client's user says of a sample; a later one of the same user replaces it.

    Raises:
        ValueError: It says nothing, or the score is not 0 to 1.
    """

    sample_id: int
    who: str
    """Keyed hash of tenant and user."""
    at_s: float
    score: float | None = None
    correction: str | None = None
    """The right answer, in the user's words."""
    over_id: int | None = None
    """Another sample's id: the same question's answer that the user liked less."""

    def __post_init__(self) -> None:
        if self.score is None and self.correction is None and self.over_id is None:
            raise ValueError("Feedback must have a score, a correction or a preference.")
        if self.score is not None:
            _check_score(self.score)


@dataclass(frozen=True)
class HeldOutScore:
    """One held-out question, asked once.

    Raises:
        ValueError: The score is not 0 to 1.
    """

    at_s: float
    adapter: str
    version: int
    question: int
    """Its index among the version's questions."""
    score: float

    def __post_init__(self) -> None:
        _check_score(self.score)


@dataclass(frozen=True)
class GeneralScore:
    """How well a version still predicts general text.

    Raises:
        ValueError: The figure is not finite.
    """

    at_s: float
    adapter: str
    version: int
    nll: float
    """Nats per token."""

    def __post_init__(self) -> None:
        if not isfinite(self.nll):
            raise ValueError(f"nll must be finite; got {self.nll!r}.")


@dataclass(frozen=True)
class DriftCheck:
    """One drift check of one window of exchanges."""

    at_s: float
    adapter: str
    version: int
    number: int
    """Number of the check: 1 for the first one of a version."""
    num_exchanges: int
    is_drift: bool
    reason: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class TrialPair:
    """One observation of stable and one of the canary, paired during their trial."""

    at_s: float
    adapter: str
    stable: int
    canary: int
    began_at: str
    """Start of the trial, UTC, ISO 8601: distinguishes trials of the same two versions."""
    kind: str
    stable_value: float
    canary_value: float
    question: int | None = None
    """Index of stable's held-out question that both answered; None for client requests."""
    stable_user: str | None = None
    """Hash of the user whose requests the value averages; None for held-out questions and shadow copies."""
    canary_user: str | None = None
    num_requests: int = 1
    """Minimum number of requests that each value averages."""


def preference_judge(judge: str, rival: str) -> str:
    """Name of a judge's preferences between two versions, as opposed to its grades of one."""
    return f"{judge}{_AGAINST}{rival}"


def is_preference(judge: str) -> bool:
    """Whether a judge's name stands for preferences; people's labels tell nothing of those."""
    return _AGAINST in judge


def _check_score(score: float) -> None:
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"A score must be from 0 to 1; got {score!r}.")
