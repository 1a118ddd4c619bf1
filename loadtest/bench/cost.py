"""Cost of a load on a server: tokens per second, and CPU time per token."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, OneShotPopularity, SyntheticPrompts
from loadtest.bench.processes import CpuMeter
from loadtest.errors import LoadtestError, TargetError
from loadtest.load.records import RequestRecord, RunResult
from loadtest.load.session import Watch, run_load


@dataclass(frozen=True)
class ComparedServer:
    """A server under comparison: its URL with /v1, and the process that was started."""

    url: str
    pid: int


@dataclass(frozen=True)
class Load:
    """A closed loop of users. `counted`: the tokens that its cost refers to."""

    num_streams: int
    num_requests: int
    num_words: int = 48
    num_tokens: int = 32
    counted: Literal["output", "prompt"] = "output"

    def config(self, url: str, models: tuple[str, ...], seed: int) -> LoadtestConfig:
        """Requests rotate through the models, so every batch holds as many models as there are streams."""
        return LoadtestConfig(
            url=url,
            mix=MixConfig(
                models=tuple(models[number % len(models)] for number in range(self.num_requests)),
                popularity=OneShotPopularity(kind="one_shot"),
            ),
            arrival=ClosedArrival(kind="closed", concurrency=self.num_streams),
            num_requests=self.num_requests,
            duration_s=3600,
            prompts=SyntheticPrompts(num_words=FixedLength(value=self.num_words)),
            max_tokens=FixedLength(value=self.num_tokens),
            request_timeout_s=600,
            drain_timeout_s=600,
            seed=seed,
        )

    def count(self, record: RequestRecord) -> int:
        return record.num_completion_tokens if self.counted == "output" else record.num_prompt_tokens or 0


@dataclass(frozen=True)
class Cost:
    tokens_per_s: float
    cpu_ms_per_token: float


Measure = Callable[[ComparedServer, tuple[str, ...], Load, int], Cost]
"""Server, models, load and the seed of the prompts, to a cost."""


def measure_cost(side: ComparedServer, models: tuple[str, ...], load: Load, seed: int) -> Cost:
    """Run a load, and read the server's CPU time around it.

    Raises:
        TargetError: A request failed.
    """
    meter = CpuMeter(side.pid)
    result = successful_run(load.config(side.url, models, seed), watch=lambda _: meter)
    return cost_of(load, result, meter.cpu_s)


def cost_of(load: Load, result: RunResult, cpu_s: float) -> Cost:
    """The cost of a finished run, for which the server's process used `cpu_s` seconds of CPU time."""
    num_tokens = sum(load.count(record) for record in result.records)
    return Cost(num_tokens / result.duration_s, 1000 * cpu_s / num_tokens)


def successful_run(config: LoadtestConfig, *, watch: Watch = lambda _: nullcontext()) -> RunResult:
    """A run in which every request went well: else its figures would be of another load.

    Raises:
        TargetError: A request failed.
        LoadtestError: Somebody interrupted it.
    """
    result = run_load(config, Path(), watch=watch)
    if result.was_stopped:
        raise LoadtestError("Interrupted.")
    require_success(result.records, config.url)
    return result


def require_success(records: tuple[RequestRecord, ...], url: str) -> None:
    """Do nothing where every request went well.

    Raises:
        TargetError: One failed; the message says how.
    """
    failed = next((record for record in records if not record.is_ok), None)
    if failed is not None:
        raise TargetError(f"{failed.model!r} at {url!r}: {failed.error}: {failed.error_message}")
