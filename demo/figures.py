"""Contents of the demo's `report.json`."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.store.evaluation_records import FigureRecord
from demo.asking import DomainScores, gain, share_bounds
from demo.questions import DemoReply


class Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


StepKind = Literal["prepare", "server", "train", "answer", "evaluate"]


class StepFigures(Figures):
    """A step; those of a server that starts and of an adapter that trains overlap."""

    name: str
    seconds: float
    start_s: float = Field(0.0, description="Since the demo's start.")
    kind: StepKind = "prepare"


class DomainFigures(Figures):
    """One domain. Accuracies and shares 0 to 1, with 95% intervals `(low, high)`; times in seconds.

    The adapter was asked all `n` questions (Wilson interval); the base the first ones of them until the interval of the
    adapter's gain was narrow, so that its own intervals hold at every number of questions at once.
    """

    domain: str
    n: int
    base: float = Field(description="Exact match of the base model, zero-shot.")
    base_interval: tuple[float, float]
    base_n: int
    few_shot: float = Field(description="Exact match of the base model with examples in the prompt.")
    few_shot_interval: tuple[float, float]
    few_shot_n: int
    adapter: float = Field(description="Exact match of the adapter.")
    adapter_interval: tuple[float, float]
    gain: float = Field(description="The adapter's exact match minus the base's on the `base_n` questions of both.")
    gain_interval: tuple[float, float]
    few_shot_gain: float = Field(description="The same against the base with examples, on `few_shot_n` questions.")
    few_shot_gain_interval: tuple[float, float]
    valid_format: float = Field(description="Share of the adapter's answers in the domain's format.")
    base_valid_format: float
    served_by: str = Field(description="The version that answered.")
    parity_ok: bool
    parity_error_nats: float | None
    ttft_p50_s: float = Field(description="Of the adapter, at the evaluation's concurrency.")
    base_ttft_p50_s: float
    tokens_per_s: float
    base_tokens_per_s: float
    train_seconds: float | None
    evaluated: tuple[FigureRecord, ...] = Field(
        (), description="Slices, robustness and forgetting, by training before publication; empty: an older version."
    )


class AnswerFigures(Figures):
    model: str
    served_by: str
    is_streamed: bool
    input: str
    expected: str
    answer: str
    seconds: float


class SwapFigures(Figures):
    """An adapter's first answer from the running server. Seconds since the demo's start."""

    adapter: str
    served_by: str
    is_trained_here: bool = Field(description="False for a version that an earlier demo trained.")
    published_s: float
    answer_s: float
    input: str
    answer: str


class MeanwhileFigures(Figures):
    """A request to the server while an adapter trained on the same machine."""

    model: str
    at_s: float = Field(description="Send time, seconds since the demo's start.")
    seconds: float
    is_ok: bool


class TrialFigures(Figures):
    """A canary of the quality demo, and how its trial ended."""

    what: str
    canary: str
    decision: str = Field(description="`promoted` or `rolled_back`.")
    reason: str
    num_requests: int = Field(description="Of clients, to both versions, until the decision was seen.")
    num_canary_requests: int
    num_questions: int = Field(description="Held-out questions that each of both had answered.")
    seconds: float
    figures: dict[str, float] = Field(description="Of the decision's event.")


class QualityDemoReport(Figures):
    """`report.json` of the quality demo."""

    schema_version: int = 1
    date: str
    machine: str
    concurrency: int
    canary_weight: float
    engine_ready_s: float
    trials: tuple[TrialFigures, ...]


class DemoReport(Figures):
    """`report.json`."""

    schema_version: int = 1
    seconds: float = Field(description="Duration of the run without installation.")
    first_adapter_answer_s: float = Field(description="From the demo's start to the first answer of any adapter.")
    date: str
    machine: str
    base: str
    concurrency: int
    engine_ready_s: float
    steps: tuple[StepFigures, ...]
    domains: tuple[DomainFigures, ...]
    answers: tuple[AnswerFigures, ...]
    swaps: tuple[SwapFigures, ...]
    meanwhile: tuple[MeanwhileFigures, ...]


def domain_figures(
    domain: str,
    scores: DomainScores,
    parity_error_nats: float | None,
    train_seconds: float | None,
    evaluated: tuple[FigureRecord, ...] = (),
) -> DomainFigures:
    """Put a domain's three scores side by side. Parity is known only of an adapter that passed it."""
    adapter, base, few_shot = scores.adapter, scores.base, scores.few_shot
    over_base, over_few_shot = gain(adapter.answers, base.answers), gain(adapter.answers, few_shot.answers)
    return DomainFigures(
        domain=domain,
        n=adapter.accuracy.n,
        base=base.accuracy.value,
        base_interval=share_bounds(base.answers),
        base_n=base.accuracy.n,
        few_shot=few_shot.accuracy.value,
        few_shot_interval=share_bounds(few_shot.answers),
        few_shot_n=few_shot.accuracy.n,
        adapter=adapter.accuracy.value,
        adapter_interval=(adapter.accuracy.ci_low, adapter.accuracy.ci_high),
        gain=over_base.value,
        gain_interval=(over_base.low, over_base.high),
        few_shot_gain=over_few_shot.value,
        few_shot_gain_interval=(over_few_shot.low, over_few_shot.high),
        valid_format=adapter.valid_format.value,
        base_valid_format=base.valid_format.value,
        served_by=adapter.served_by,
        parity_ok=parity_error_nats is not None,
        parity_error_nats=parity_error_nats,
        ttft_p50_s=round(adapter.ttft_p50_s, 4),
        base_ttft_p50_s=round(base.ttft_p50_s, 4),
        tokens_per_s=round(adapter.tokens_per_s, 1),
        base_tokens_per_s=round(base.tokens_per_s, 1),
        train_seconds=train_seconds,
        evaluated=evaluated,
    )


def answer_figures(reply: DemoReply) -> AnswerFigures:
    return AnswerFigures(
        model=reply.question.model,
        served_by=reply.served_by,
        is_streamed=reply.question.is_streamed,
        input=reply.question.row.input,
        expected=reply.question.row.output,
        answer=reply.text,
        seconds=round(reply.ended_s - reply.started_s, 3),
    )


def utc_date() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine_name() -> str:
    """Processor and number of cores."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"
