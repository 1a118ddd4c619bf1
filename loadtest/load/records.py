"""Results of a load test: one record per request, and the run. Times in seconds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ErrorKind = Literal["timeout", "connection", "throttled", "client_error", "server_error", "broken_stream", "unfinished"]


class LoadtestRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestRecord(LoadtestRecord):
    """One request. Clock times are seconds since the start of the run.

    Latencies count from `intended_s`, the scheduled send time, so that a stalled server or a late generator shows
    (coordinated omission, Gil Tene).
    """

    index: int
    model: str = Field(description="The requested model reference.")
    served_by: str | None = Field(None, description="The answer's `model`.")
    is_cold: bool | None = Field(None, description="`x-lorikeet-cold`; None if the server does not send it.")
    intended_s: float
    sent_s: float
    chunk_times_s: tuple[float, ...] = Field(
        (),
        repr=False,
        description="When each piece of the answer arrived: a token without visible text counts, the opening chunk "
        "that only names the role does not.",
    )
    ended_s: float
    num_prompt_tokens: int | None = None
    num_completion_tokens: int = 0
    status: int | None = Field(None, description="HTTP status.")
    error: ErrorKind | None = None
    error_message: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def lag_s(self) -> float:
        """Delay of sending by the generator."""
        return self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        return self.chunk_times_s[0] - self.intended_s if self.chunk_times_s else None

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.num_completion_tokens < 2 or not self.chunk_times_s:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.num_completion_tokens - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Gaps between pieces of text."""
        return tuple(b - a for a, b in zip(self.chunk_times_s, self.chunk_times_s[1:], strict=False))


class GeneratorFigures(LoadtestRecord):
    """Whether the generator itself was the bottleneck."""

    lag_p50_s: float = Field(description="How late it was: in an open loop with sending, and with a timer every 50 ms.")
    lag_p99_s: float
    cpu_share: float = Field(description="CPU use as a share of one core, over the run.")
    is_bottleneck: bool


class RunResult(LoadtestRecord):
    """A finished run; `report.py` renders it as JSON, HTML and Markdown."""

    schema_version: Literal[1] = 1
    name: str
    url: str
    started_at: str = Field(description="UTC, ISO 8601.")
    machine: str
    workload: dict[str, object] = Field(description="The configuration of the run as given.")
    seed: int
    duration_s: float
    was_stopped: bool = Field(False, description="Whether the run was interrupted.")
    generator: GeneratorFigures
    records: tuple[RequestRecord, ...] = Field(repr=False)
    warnings: tuple[str, ...] = ()
