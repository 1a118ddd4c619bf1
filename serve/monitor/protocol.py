"""What the quality monitor needs of the server that it watches. The server's rooms fill it; it imports none of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.reference import Target
from adapters.scores import Score
from adapters.store.manifest import Manifest, RequestDefaults
from adapters.store.store import AdapterStore
from quality.agreement import Agreement
from quality.drift import DriftReport
from quality.signals import Signals
from quality.verdict import Verdict
from serve.background import Failures
from serve.engine.protocol import Engine
from serve.records import EvaluationListeners, GenerationRecord

FillDefaults = Callable[[dict[str, Any], RequestDefaults | None], dict[str, Any]]
"""A whole chat completion request: what it leaves out comes from a version's defaults, then from the server's."""


class VersionLease(Protocol):
    """A hold on a resident version, until its `with` block ends."""

    @property
    def manifest(self) -> Manifest: ...

    def __enter__(self) -> "VersionLease": ...

    def __exit__(self, *_: object) -> None: ...


class Quarantining(Protocol):
    """Takes versions out of service."""

    def add(self, target: Target) -> None: ...


class LoadedVersions(Protocol):
    """The versions that are loaded now, each with an object that another load replaces."""

    @property
    def residents(self) -> Mapping[Target, object]: ...


class LeasedVersions(LoadedVersions, Protocol):
    """The versions that can be asked."""

    @property
    def quarantine(self) -> Quarantining: ...

    async def lease(self, target: Target) -> VersionLease:
        """Make a version resident, and keep it so until the lease ends.

        Raises:
            ServeError: It cannot be asked, or not now.
        """
        ...


class QualityMeter(Protocol):
    """Counts and shows how good the versions are."""

    def monitor_paused(self, *, is_paused: bool) -> None: ...

    def answer_seen(self, adapter: str, version: str, signals: Signals) -> None: ...

    def answers_dropped(self, reason: str, num: int = 1) -> None: ...

    def samples_kept(self, adapter: str, version: str, num: int) -> None: ...

    def feedback_taken(self, adapter: str, version: str, kind: str) -> None: ...

    def drift_checked(self, target: Target, report: DriftReport) -> None: ...

    def held_out_scored(self, target: Target, share: Score) -> None: ...

    def general_measured(self, target: Target, nll: float) -> None: ...

    def trial_judged(self, canary: Target, verdict: Verdict) -> None: ...

    def trial_over(self, canary: Target) -> None: ...

    def verdict_told(self, canary: Target, action: str) -> None: ...


class JudgeMeter(Protocol):
    """Counts and shows what the judge says."""

    def asked(self, outcome: str) -> None: ...

    def judged(self, adapter: str, version: int, mean_score: float, *, is_calibrated: bool) -> None: ...

    def preferred(self, adapter: str, version: int, mean_preference: float) -> None: ...

    def agrees(self, adapter: str, agreement: Agreement) -> None: ...


class ExpectedAnswers(Protocol):
    """The rules for answers of the loaded versions."""

    def refusal(self, lora_name: str | None) -> str | None:
        """The agreed answer to an out-of-scope input; None where there is none."""
        ...

    def valid_format(self, record: GenerationRecord) -> tuple[bool, ...]:
        """For each answer whether it has the format; nothing where the version has none."""
        ...


class MonitorMetrics(Protocol):
    """The server's metrics, as far as the monitor fills or reads them."""

    @property
    def quality(self) -> QualityMeter: ...

    @property
    def judge(self) -> JudgeMeter: ...

    @property
    def answers(self) -> ExpectedAnswers: ...

    @property
    def failures(self) -> Failures: ...

    @property
    def evaluated(self) -> EvaluationListeners:
        """Who is told of every score that the monitor gives."""
        ...


class TimeInPrompt(Protocol):
    """Where a chat template writes the time; `longest` is the most tokens that it has."""

    @property
    def longest(self) -> int: ...

    def cut(self, tokens: Sequence[int | str]) -> tuple[int | str, ...]:
        """The tokens without those of the time."""
        ...


FindTime = Callable[[Sequence[Sequence[dict[str, str]]]], TimeInPrompt | None]
"""Where the chat template writes the time in these conversations; None where it writes none.

Raises:
    ValueError: In more than one place, or beside a client's own text.
"""


class FiniteLogprobs(Protocol):
    """The engine's `logprobs`, proved finite."""

    async def __call__(self, token_ids: Sequence[int], target: Target) -> list[float]:
        """Raises: NotFiniteError: One is not. ServeError: They cannot be had."""
        ...


@dataclass(frozen=True)
class MonitoredServer:
    """The server, as its monitor sees it. `is_busy`: whether clients' requests run."""

    engine: Engine
    versions: LeasedVersions
    adapters: AdapterStore
    metrics: MonitorMetrics
    is_busy: Callable[[], bool]
    fill_defaults: FillDefaults
    finite_logprobs: FiniteLogprobs
    find_time: FindTime
