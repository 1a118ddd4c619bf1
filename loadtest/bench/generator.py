"""`lorikeet bench generator`: load that the generator can send and time on one core, against the synthetic server.

The generator keeps up with a load as long as it sends on time and each chunk is timed on time, by the server's own log.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from config.loadtest import ConstantArrival, FixedLength, LoadtestConfig, MixConfig
from loadtest.bench.alternate import alternate
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.load.client import open_client
from loadtest.load.records import RequestRecord
from loadtest.load.runner import Runner, RunOutcome
from loadtest.load.workload import plan
from loadtest.report.stats import percentile

STREAMS = (32, 64, 128, 256, 384, 512, 768, 1024)
WANTED_CHUNKS_PER_S = 1500
"""Five times the tokens per second of the engine on a CPU with two cores."""
_ITL_S = 0.02
_NUM_TOKENS = 100
_SEND_FOR_S = 4.0
_MAX_DELAY_S = 0.010
_COMPARED_STREAMS = 128


@dataclass(frozen=True)
class Measured:
    """One load. `delay_p99_s`: from a chunk's true sending to its time in the record."""

    num_streams: int
    chunks_per_s: float
    chunks_per_cpu_s: float
    delay_p99_s: float
    lag_p99_s: float
    cpu_share: float
    is_all_ok: bool

    @property
    def has_kept_up(self) -> bool:
        return self.is_all_ok and max(self.delay_p99_s, self.lag_p99_s) <= _MAX_DELAY_S


def bench_generator(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Add streams until the generator is late; then compare the cost of a chunk with that of httpx's own transport."""
    best = _most_streams(options)
    pair = alternate(
        lambda: measure(_COMPARED_STREAMS, is_httpx=True).chunks_per_cpu_s,
        lambda: measure(_COMPARED_STREAMS).chunks_per_cpu_s,
        options.rounds,
        options.pause_s,
    )
    interval = (pair.ratio_interval.low, pair.ratio_interval.high)
    return (
        BenchResult(name="streams at once, on time", value=best.num_streams, unit="streams"),
        BenchResult(
            name="chunks timed, on time",
            value=best.chunks_per_s,
            unit="chunks/s",
            target=f"at least {WANTED_CHUNKS_PER_S}",
            is_pass=best.chunks_per_s >= WANTED_CHUNKS_PER_S,
        ),
        BenchResult(name="delay of a chunk's time, p99", value=best.delay_p99_s * 1000, unit="ms"),
        BenchResult(name="CPU for it", value=best.cpu_share, unit="cores"),
        BenchResult(
            name="chunks per second of CPU (baseline: httpx's transport)",
            value=pair.candidate,
            unit="chunks/s",
            baseline=pair.baseline,
            ratio=pair.ratio,
            ratio_interval=interval,
        ),
    )


def measure(num_streams: int, *, is_httpx: bool = False) -> Measured:
    """So many streams at a time, each of a hundred chunks in two seconds, for some seconds."""
    with synthetic_server(Delays(ttft_s=_ITL_S, itl_s=_ITL_S)) as server:
        start_s = time.perf_counter()
        outcome = asyncio.run(_run(_config(server.url, num_streams), start_s, is_httpx))
        sent_s = server.sent_s()
    delays_s = [
        delay_s
        for record in outcome.records
        for delay_s in _delays_s(record, sent_s.get(f"load-{record.index}", []), start_s)
    ]
    # Without the beginning and the end, when there are fewer streams.
    times_s = [time_s for record in outcome.records for time_s in record.chunk_times_s]
    steady_s = [time_s for time_s in times_s if _SEND_FOR_S / 2 <= time_s < _SEND_FOR_S]
    return Measured(
        num_streams=num_streams,
        chunks_per_s=len(steady_s) / (_SEND_FOR_S / 2),
        chunks_per_cpu_s=len(times_s) / (outcome.generator.cpu_share * outcome.duration_s),
        delay_p99_s=percentile(delays_s, 99) if delays_s else float("inf"),
        lag_p99_s=outcome.generator.lag_p99_s,
        cpu_share=outcome.generator.cpu_share,
        is_all_ok=all(record.is_ok for record in outcome.records),
    )


def _most_streams(options: BenchOptions) -> Measured:
    """The last load that it kept up with; the first one where it did with none."""
    measured: list[Measured] = []
    for num_streams in STREAMS:
        found = measure(num_streams)
        options.say(
            f"{num_streams} streams: {found.chunks_per_s:.0f} chunks/s, {found.cpu_share:.2f} cores, late by "
            f"{found.delay_p99_s * 1000:.1f} ms (chunks) and {found.lag_p99_s * 1000:.1f} ms (requests) at p99"
        )
        measured.append(found)
        if not found.has_kept_up:
            break
    return next((found for found in reversed(measured) if found.has_kept_up), measured[0])


def _config(url: str, num_streams: int) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=("synthetic",)),
        arrival=ConstantArrival(kind="constant", rate=num_streams / (_ITL_S * _NUM_TOKENS)),
        duration_s=_SEND_FOR_S,
        max_tokens=FixedLength(value=_NUM_TOKENS),
        drain_timeout_s=30,
    )


async def _run(config: LoadtestConfig, start_s: float, is_httpx: bool) -> RunOutcome:
    def clock() -> float:
        return time.perf_counter() - start_s

    async with open_client(clock=clock, transport=_httpx_transport() if is_httpx else None) as client:
        return await Runner(config, client, clock).run(plan(config, Path()))


def _httpx_transport() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))


def _delays_s(record: RequestRecord, sent_s: list[float], start_s: float) -> list[float]:
    """From sending to noting, chunk by chunk."""
    pairs = zip(record.chunk_times_s, sent_s, strict=False)
    return [noted_s - (one_s - start_s) for noted_s, one_s in pairs]
