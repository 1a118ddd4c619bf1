"""`lorikeet bench manyadapters`: a thousand adapters behind few slots, beside the same load for one adapter alone.

They are asked for as people ask (Zipf): behind eight slots, then behind as many as the configuration has. Then the
thousand for a long time: who waits how long, what is loaded, and whether memory grows.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from config.loadtest import (
    ClosedArrival,
    FixedLength,
    LoadtestConfig,
    MixConfig,
    SyntheticPrompts,
    ZipfPopularity,
)
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import ComparedServer, require_success
from loadtest.bench.memory import MemorySample, Trend, sampled_memory, trend_of
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import CpuMeter
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.servers import kept_logs, made_folder, our_server, same_threads, serve_config
from loadtest.load.client import open_client
from loadtest.load.records import RequestRecord
from loadtest.load.runner import Runner, RunOutcome
from loadtest.load.workload import plan
from loadtest.report.stats import percentile, values_of

NUM_ADAPTERS = 1000
NUM_STREAMS = 16
NUM_TOKENS = 32
FEW_SLOTS = 8
LEAST_THROUGHPUT = 0.7
MOST_TTFT_P99 = 3.0
MOST_GROWTH = 1.05
_WAVES = 12
_NUM_DECILES = 10
_CHURN_SEED = 1_000_000
_LOADS, _UNLOADS = "lorikeet_adapter_loads_total", "lorikeet_adapter_unloads_total"


@dataclass(frozen=True)
class ManyAdaptersResult:
    """One measurement."""

    tokens_per_s: float
    cpu_ms_per_token: float
    ttft_p50_ms: float
    ttft_p99_ms: float


@dataclass(frozen=True)
class Churn:
    """What a long run did. `num_loads` and `num_unloads` are the server's own counts."""

    records: tuple[RequestRecord, ...]
    duration_s: float
    cpu_s: float
    num_loads: float
    num_unloads: float
    memory: Trend


Measure = Callable[[tuple[str, ...], int], ManyAdaptersResult]
"""Models by popularity, and the seed of prompts and of the choice of models."""


def bench_manyadapters(options: BenchOptions) -> tuple[BenchResult, ...]:
    """A server of ours with the thousand for each number of slots; the last one gets the long run.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: The server did not become ready, or a request failed. Its log is kept; the message says
            where.
    """
    configured = serve_config(options)
    environment = same_threads(options)
    results: list[BenchResult] = []
    with kept_logs() as folder:
        for slots in dict.fromkeys((FEW_SLOTS, configured.max_loras)):
            # A home of its own: what the server before has kept on disk would make first loads cheaper.
            place = made_folder(folder / f"{slots}-slots")
            home, names = copy_adapter(options.home, options.adapter, NUM_ADAPTERS, place / "home")
            config = serve_config(options, max_loras=slots, max_cpu_loras=max(slots, configured.max_cpu_loras))
            options.say(f"{len(names)} adapters, {slots} slots, {config.max_cpu_loras} in host memory")
            with our_server(config, home, place, environment) as server:
                side = ComparedServer(f"{server.url}/v1", server.pid)
                results += compare(names, slots, partial(measure_served, side), options)
                if slots == configured.max_loras:
                    options.say(f"the thousand for {options.minutes:g} minutes")
                    results += churn_results(churn(side, names, 60 * options.minutes), names)
    return tuple(results)


def compare(names: tuple[str, ...], slots: int, measure: Measure, options: BenchOptions) -> tuple[BenchResult, ...]:
    """Zipf over all, beside one adapter alone, alternately.

    Raises:
        TargetError: A request failed.
    """
    sides = (names[:1], names)
    for models in sides:
        measure(models, 0)
    one, many = (with_next_seed(partial(measure, models), 1) for models in sides)
    pairs = measure_pairs(one, many, options.rounds, options.rest_s)

    def of(figure: Callable[[ManyAdaptersResult], float], name: str, unit: str, **target: float) -> BenchResult:
        compared = compare_pairs([(figure(alone), figure(mixed)) for alone, mixed in pairs])
        title = f"Zipf over {len(names):,} adapters, {slots} slots: {name} (baseline: one adapter)"
        return paired(title, unit, compared, **target)

    results = (
        of(lambda s: s.tokens_per_s, f"{NUM_STREAMS} streams", "tok/s", least=LEAST_THROUGHPUT),
        of(lambda s: s.cpu_ms_per_token, "CPU per token", "ms"),
        of(lambda s: s.ttft_p50_ms, "TTFT p50", "ms"),
        of(lambda s: s.ttft_p99_ms, "TTFT p99", "ms", most=MOST_TTFT_P99),
    )
    options.say(f"{results[0].ratio:.3f} of one adapter's tok/s, TTFT p99 {results[-1].ratio:.2f} times as long")
    return results


def measure_served(side: ComparedServer, models: tuple[str, ...], seed: int) -> ManyAdaptersResult:
    """A closed loop of users, one adapter or many.

    Raises:
        TargetError: A request failed.
    """
    meter = CpuMeter(side.pid)
    config = _config(side.url, models, seed, num_requests=_WAVES * NUM_STREAMS, duration_s=3600)
    result = _run(config, meter)
    require_success(result.records, side.url)
    num_tokens = sum(record.num_completion_tokens for record in result.records)
    ttfts_ms = [1000 * ttft_s for ttft_s in values_of(result.records, "ttft")]
    return ManyAdaptersResult(
        tokens_per_s=num_tokens / result.duration_s,
        cpu_ms_per_token=1000 * meter.cpu_s / num_tokens,
        ttft_p50_ms=percentile(ttfts_ms, 50),
        ttft_p99_ms=percentile(ttfts_ms, 99),
    )


def churn(side: ComparedServer, names: tuple[str, ...], duration_s: float) -> Churn:
    """The same load for so long; requests that fail are counted."""
    config = _config(side.url, names, _CHURN_SEED, num_requests=1_000_000, duration_s=duration_s)
    metrics_url = f"{side.url.removesuffix('/v1')}/metrics"
    samples: list[MemorySample] = []
    before, meter = _metrics(metrics_url), CpuMeter(side.pid)
    with sampled_memory(side.pid, samples):
        result = _run(config, meter)
    after = _metrics(metrics_url)
    loads, unloads = (metric_total(after, name) - metric_total(before, name) for name in (_LOADS, _UNLOADS))
    return Churn(result.records, result.duration_s, meter.cpu_s, loads, unloads, trend_of(samples))


def churn_results(churn: Churn, names: tuple[str, ...]) -> tuple[BenchResult, ...]:
    """What a long run says of waiting, loads and memory."""
    done = [record for record in churn.records if record.is_ok]
    num_tokens = sum(record.num_completion_tokens for record in done)
    num_failed, memory = len(churn.records) - len(done), churn.memory
    growth = memory.end_bytes / memory.start_bytes
    prefix = f"{churn.duration_s / 60:.0f} minutes"
    return (
        BenchResult(name=f"{prefix}: throughput", value=num_tokens / churn.duration_s, unit="tok/s"),
        BenchResult(name=f"{prefix}: CPU per token", value=1000 * churn.cpu_s / max(num_tokens, 1), unit="ms"),
        BenchResult(name=f"{prefix}: requests", value=len(churn.records), unit="requests"),
        BenchResult(
            name=f"{prefix}: failed requests",
            value=num_failed,
            unit="requests",
            target="none",
            is_pass=num_failed == 0,
        ),
        BenchResult(name=f"{prefix}: cold loads", value=churn.num_loads, unit="loads"),
        BenchResult(name=f"{prefix}: evictions", value=churn.num_unloads, unit="unloads"),
        *_decile_results(done, names),
        BenchResult(
            name=f"{prefix}: resident memory at the end (baseline: at the start)",
            value=memory.end_bytes / 1e6,
            unit="MB",
            baseline=memory.start_bytes / 1e6,
            ratio=growth,
            target=f"ratio below {MOST_GROWTH:g}",
            is_pass=growth < MOST_GROWTH,
        ),
        BenchResult(name=f"{prefix}: slope of memory", value=memory.slope_bytes_per_h / 1e6, unit="MB/h"),
    )


def metric_total(text: str, name: str) -> float:
    """Sum of a counter over all its labels, in Prometheus' text format."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _decile_results(done: Sequence[RequestRecord], names: tuple[str, ...]) -> Iterator[BenchResult]:
    """TTFT p50 of each tenth of the adapters, the most popular first; tenths without requests are left out."""
    place = {name: number for number, name in enumerate(names)}
    for decile in range(_NUM_DECILES):
        first, last = (len(names) * edge // _NUM_DECILES for edge in (decile, decile + 1))
        asked = [record for record in done if first <= place[record.model] < last]
        if ttfts_s := values_of(asked, "ttft"):
            name = f"TTFT p50, adapters {first + 1} to {last} by popularity, {len(asked)} requests"
            yield BenchResult(name=name, value=1000 * percentile(ttfts_s, 50), unit="ms")


def _config(url: str, models: tuple[str, ...], seed: int, *, num_requests: int, duration_s: float) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=models, popularity=ZipfPopularity(kind="zipf", s=1.0)),
        arrival=ClosedArrival(kind="closed", concurrency=NUM_STREAMS),
        num_requests=num_requests,
        duration_s=duration_s,
        prompts=SyntheticPrompts(num_words=FixedLength(value=48)),
        max_tokens=FixedLength(value=NUM_TOKENS),
        request_timeout_s=600,
        seed=seed,
    )


def _run(config: LoadtestConfig, meter: CpuMeter) -> RunOutcome:
    """As `run_load`, but for its question which models there are: with a thousand, the answer is work by itself."""
    start_s = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - start_s

    async def run() -> RunOutcome:
        async with open_client(clock=clock) as client:
            with meter:
                return await Runner(config, client, clock).run(plan(config, Path()))

    return asyncio.run(run())


def _metrics(url: str) -> str:
    return httpx.get(url, timeout=60, trust_env=False).raise_for_status().text
