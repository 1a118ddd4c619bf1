"""The figures of `lorikeet quality report`: what the quality store and the adapter store say of each adapter."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord
from quality.agreement import Agreement
from serve.monitor.trial.state import TrialState


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class HeldOutStep(_ReportModel):
    """Held-out questions asked until then, each with its latest score."""

    at_s: float
    accuracy: Score


class SignalStep(_ReportModel):
    """What samples of a stretch of time were like; None where none of them had the figure."""

    at_s: float
    n: int
    mean_logprob: float | None
    refused: float
    repetition: float
    num_tokens: float
    ttft_s: float | None


class GeneralStep(_ReportModel):
    at_s: float
    nll: float


class DriftStep(_ReportModel):
    at_s: float
    number: int
    num_exchanges: int
    is_drift: bool
    reason: str


class MeanScore(_ReportModel):
    """Of one judge for one version; its interval takes scores for coin flips, which vary more than any score can."""

    judge: str
    score: Score


class VersionFigures(_ReportModel):
    version: int
    """0 is the base."""
    num_samples: int
    num_with_text: int
    num_labels: int
    published: Score | None
    """Mean score of the held-out questions at publish, from the manifest."""
    published_nll: float | None
    """Of the general text that the version brought, by the training stack."""
    held_out: tuple[HeldOutStep, ...]
    signals: tuple[SignalStep, ...]
    general: tuple[GeneralStep, ...]
    drift_steps: tuple[DriftStep, ...]
    scores: tuple[MeanScore, ...]
    figures: tuple[FigureRecord, ...] = ()
    """Of the evaluation before publication: slices, robustness, forgetting."""


class JudgeFigures(_ReportModel):
    """One judge against people's labels, over all versions of the adapter."""

    judge: str
    num_grades: int
    agreement: Agreement
    counts: tuple[tuple[int, ...], ...]
    """(5, 5) answers by label (row) and the judge's grade (column), both 1 to 5."""


class Decision(_ReportModel):
    """An event of the adapter's history that moved traffic, or said what would have."""

    at: str
    """UTC, ISO 8601."""
    kind: str
    version: int | None
    previous: int | None
    alias: str | None
    action: str | None
    reason: str
    figures: Mapping[str, float]


class Missing(_ReportModel):
    """A figure that the report lacks, and how to get it."""

    what: str
    how: str


class AdapterFigures(_ReportModel):
    name: str
    versions: tuple[VersionFigures, ...]
    judges: tuple[JudgeFigures, ...]
    decisions: tuple[Decision, ...]
    missing: tuple[Missing, ...]
    trial: TrialState | None = None
    """The canary on trial, as what was written down of it says."""


class QualityReport(_ReportModel):
    schema_version: Literal[1] = 1
    created_at: str
    """UTC, ISO 8601."""
    store: str
    adapters: tuple[AdapterFigures, ...]
