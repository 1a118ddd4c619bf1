"""What the demo found out, as `report.json` keeps it."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from demo.questions import Reply
from loadtest.evaluate import LiveScore


class Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class StepFigures(Figures):
    name: str
    seconds: float


class DomainFigures(Figures):
    """One domain. Accuracies and shares 0 to 1, with 95% Wilson intervals `(low, high)`; times in seconds."""

    domain: str
    n: int
    base: float = Field(description="Exact match of the base model, zero-shot.")
    base_interval: tuple[float, float]
    few_shot: float = Field(description="Exact match of the base model with examples in the prompt.")
    few_shot_interval: tuple[float, float]
    adapter: float = Field(description="Exact match of the adapter.")
    adapter_interval: tuple[float, float]
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


class AnswerFigures(Figures):
    model: str
    served_by: str
    is_streamed: bool
    input: str
    expected: str
    answer: str
    seconds: float


class TrialFigures(Figures):
    """A canary of the quality demo, and how its trial ended."""

    what: str
    canary: str
    decision: str = Field(description="`promoted` or `rolled_back`.")
    reason: str
    num_requests: int = Field(description="Of clients, to both versions, until the decision was seen.")
    num_canary_requests: int
    num_probes: int = Field(description="Held-out questions that each of both had answered.")
    seconds: float
    figures: dict[str, float] = Field(description="Of the decision's event.")


class QualityReport(Figures):
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
    seconds: float = Field(description="Whole run, install not counted.")
    date: str
    machine: str
    base: str
    concurrency: int
    engine_ready_s: float
    steps: tuple[StepFigures, ...]
    domains: tuple[DomainFigures, ...]
    answers: tuple[AnswerFigures, ...]


def domain_figures(
    domain: str,
    base: LiveScore,
    few_shot: LiveScore,
    adapter: LiveScore,
    parity_error_nats: float | None,
    train_seconds: float | None,
) -> DomainFigures:
    """Put a domain's three scores side by side. Parity is known only of an adapter that passed it."""
    return DomainFigures(
        domain=domain,
        n=adapter.accuracy.n,
        base=base.accuracy.value,
        base_interval=(base.accuracy.ci_low, base.accuracy.ci_high),
        few_shot=few_shot.accuracy.value,
        few_shot_interval=(few_shot.accuracy.ci_low, few_shot.accuracy.ci_high),
        adapter=adapter.accuracy.value,
        adapter_interval=(adapter.accuracy.ci_low, adapter.accuracy.ci_high),
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
    )


def answer_figures(reply: Reply) -> AnswerFigures:
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
