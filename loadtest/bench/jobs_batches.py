"""Batches in `lorikeet bench jobs`: as fast as the same lines asked in a closed loop, and beside clients who wait."""

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from config.loadtest import (
    Arrival,
    ClosedArrival,
    FixedLength,
    LoadtestConfig,
    MixConfig,
    PoissonArrival,
    SyntheticPrompts,
)
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.cost import ComparedServer, successful_run
from loadtest.bench.jobs_api import JobsApi
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import CpuMeter
from loadtest.bench.results import BenchResult, compared, paired
from loadtest.errors import TargetError
from loadtest.load.workload import plan
from loadtest.report.stats import percentile, values_of

NUM_LINES = 10_000
"""Of the batch that runs beside clients; it is cancelled when they have been measured."""
NUM_ALONE = 500
NUM_TOKENS = 16
CLIENT_RATE = 2.0
CLIENTS_S = 45.0
LEAST_THROUGHPUT = 0.9
MOST_TTFT_P99 = 1.2

_CALM_S = 8.0
"""A server that has just answered clients gives batches less: serve/jobs/batch_pace.py."""


class BatchClient(JobsApi):
    """Batches of one server."""

    def submit(self, lines: bytes) -> str:
        """Path of a new batch of these lines."""
        file_id = self.upload(lines, "batch")
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return f"/batches/{self.post('/batches', body)['id']}"

    def cancel(self, batch: str) -> None:
        """Cancel it, and wait until it is."""
        self.post(f"{batch}/cancel")
        self.wait(batch, lambda batch: batch["status"] == "cancelled")


def bench_batches(side: ComparedServer, model: str, concurrency: int, options: BenchOptions) -> tuple[BenchResult, ...]:
    """Throughput of a batch alone, then clients' TTFT without and with a batch.

    Args:
        concurrency: Of the closed loop: as many as a batch has at a time when it is alone.

    Raises:
        TargetError: A request or a batch failed.
    """
    client = BatchClient(side.url)
    alone = _alone(client, side, model, concurrency, options)
    return *alone, *_beside(client, side.url, model, options)


def _alone(
    client: BatchClient, side: ComparedServer, model: str, concurrency: int, options: BenchOptions
) -> Iterator[BenchResult]:
    """Lines per second and CPU time per line, in alternation with a closed loop of users."""

    def closed(seed: int) -> tuple[float, float]:
        config = _config(side.url, model, seed, ClosedArrival(kind="closed", concurrency=concurrency))
        with (meter := CpuMeter(side.pid)):
            result = successful_run(config.model_copy(update={"num_requests": NUM_ALONE}))
        return len(result.records) / result.duration_s, 1000 * meter.cpu_s / NUM_ALONE

    def batch(seed: int) -> tuple[float, float]:
        lines, start_s = batch_lines(side.url, model, seed, NUM_ALONE), time.monotonic()
        with (meter := CpuMeter(side.pid)):
            done = client.wait(client.submit(lines), lambda batch: batch["status"] == "completed")
        if done["request_counts"]["completed"] != NUM_ALONE:
            raise TargetError(f"Not all of {NUM_ALONE} lines were answered: {done['request_counts']}")
        return NUM_ALONE / (time.monotonic() - start_s), 1000 * meter.cpu_s / NUM_ALONE

    closed(0)
    pairs = measure_pairs(
        with_next_seed(closed, 1), with_next_seed(batch, 1), options.rounds, max(_CALM_S, options.rest_s)
    )
    alone, cpu_ms = (compare_pairs([(first[at], second[at]) for first, second in pairs]) for at in (0, 1))
    options.say(f"{NUM_ALONE} lines: {alone.ratio:.2f} of the closed loop's {alone.baseline:.1f} lines/s")
    name = f"batch of {NUM_ALONE} lines of {NUM_TOKENS} tokens (baseline: closed loop of {concurrency})"
    yield paired(name, "lines/s", alone, least=LEAST_THROUGHPUT)
    yield paired("CPU per line of it (baseline: closed loop)", "ms", cpu_ms)


def _beside(client: BatchClient, url: str, model: str, options: BenchOptions) -> Iterator[BenchResult]:
    """TTFT of clients, in alternation without and with a batch, over all rounds together."""
    rates: list[float] = []

    def clients(seed: int) -> list[float]:
        result = successful_run(_config(url, model, 1000 + seed, PoissonArrival(rate=CLIENT_RATE)))
        return [1000 * ttft_s for ttft_s in values_of(result.records, "ttft")]

    def with_batch(seed: int) -> list[float]:
        batch = client.submit(batch_lines(url, model, 2000 + seed, NUM_LINES))
        before = client.wait(batch, lambda batch: batch["request_counts"]["completed"] > 0)
        start_s = time.monotonic()
        ttfts_ms = clients(seed)
        after = client.get(batch)
        num_done = after["request_counts"]["completed"] - before["request_counts"]["completed"]
        rates.append(num_done / (time.monotonic() - start_s))
        client.cancel(batch)
        return ttfts_ms

    pairs = measure_pairs(
        with_next_seed(clients, 1), with_next_seed(with_batch, 1), options.rounds, max(_CALM_S, options.rest_s)
    )
    alone_ms, beside_ms = ([ttft_ms for each in pairs for ttft_ms in each[side]] for side in (0, 1))
    for share, most in ((50, None), (99, MOST_TTFT_P99)):
        baseline, value = percentile(alone_ms, share), percentile(beside_ms, share)
        options.say(f"clients' TTFT p{share}: {value:.0f} ms beside a batch, {baseline:.0f} ms without")
        name = f"TTFT p{share} of {CLIENT_RATE:g} requests/s beside {NUM_LINES:,} lines (baseline: without)"
        yield compared(name, "ms", baseline, value, most=most)
    yield BenchResult(name="the batch beside these clients", value=sum(rates) / len(rates), unit="lines/s")


def batch_lines(url: str, model: str, seed: int, count: int) -> bytes:
    """Lines with the prompts that a load test with this seed sends."""
    config = _config(url, model, seed, ClosedArrival(kind="closed", concurrency=1))
    lines = []
    for planned in islice(plan(config, Path()), count):
        body = json.loads(planned.body)
        for field in ("stream", "stream_options"):
            del body[field]
        row = {"custom_id": f"line-{planned.index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(row))
    return "\n".join(lines).encode()


def _config(url: str, model: str, seed: int, arrival: Arrival) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=(model,)),
        arrival=arrival,
        num_requests=NUM_LINES,
        duration_s=CLIENTS_S if isinstance(arrival, PoissonArrival) else 3600,
        prompts=SyntheticPrompts(num_words=FixedLength(value=48)),
        max_tokens=FixedLength(value=NUM_TOKENS),
        request_timeout_s=600,
        drain_timeout_s=600,
        seed=seed,
    )
