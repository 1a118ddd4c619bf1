"""What routing changes: cold loads and latency by Zipf's law, and the throughput of one hot adapter."""

from collections.abc import Callable
from pathlib import Path

from config.loadtest import HotSetPopularity, PoissonArrival
from loadtest.bench.cluster_server import load_on, metrics_of
from loadtest.bench.cost import require_success
from loadtest.bench.manyadapters import metric_total
from loadtest.bench.results import BenchResult, compared
from loadtest.bench.server import RunningServer
from loadtest.load.files import write_run
from loadtest.load.records import LoadtestRecord, RunResult
from loadtest.report.stats import percentile, values_of

LOAD = 0.5
"""Rate of the open loop, as a share of what the base answers in a closed loop: loads of adapters take time, too."""

MOST_COLD_LOADS = 0.5
MOST_TTFT_P99 = 0.8
LEAST_HOT_THROUGHPUT = 1.5
_OPEN_REQUESTS = 45
"""For each replica: as many as `lorikeet simulate` needs of a run."""
_CLOSED_LOOP_S = 15.0
_CLOSED_LOOP_SEED, _OPEN_SEED, _HOT_WARM_UP_SEED, _HOT_SEED = 2, 3, 20, 21
_HOT_STREAMS = 32
_HOT_WARM_UP, _HOT_REQUESTS = 2 * _HOT_STREAMS, 6 * _HOT_STREAMS
_LOADS = "lorikeet_adapter_loads_total"


class RoutedLoad(LoadtestRecord):
    """Figures of one load."""

    num_requests: int
    num_loads: float
    ttft_p99_ms: float
    tokens_per_s: float

    def __str__(self) -> str:
        return (
            f"{self.num_requests} requests, {self.num_loads:.0f} cold loads, TTFT p99 {self.ttft_p99_ms:,.0f} ms, "
            f"{self.tokens_per_s:.1f} tok/s"
        )


class ClosedLoopRate(LoadtestRecord):
    """What one replica answers with the base in a closed loop, requests per second."""

    per_replica: float

    def __str__(self) -> str:
        return f"{self.per_replica:.2f} requests/s of one replica"


def closed_loop_rate(server: RunningServer, base: str, replicas: int) -> ClosedLoopRate:
    """Measured on so many replicas.

    Raises:
        TargetError: A request failed.
    """
    run = load_on(server, (base,), duration_s=_CLOSED_LOOP_S, seed=_CLOSED_LOOP_SEED)
    require_success(run.records, server.url)
    return ClosedLoopRate(per_replica=len(run.records) / run.duration_s / replicas)


def open_load(
    server: RunningServer, names: tuple[str, ...], replicas: int, of_one: ClosedLoopRate, folder: Path
) -> RoutedLoad:
    """Poisson arrivals by Zipf's law over all adapters; none of them is loaded yet.

    Args:
        replicas: That many answer; each gets `LOAD` of its capacity.
        folder: Gets `run.json`, for the simulation.

    Raises:
        TargetError: A request failed.
    """

    def load() -> RunResult:
        arrival = PoissonArrival(rate=LOAD * replicas * of_one.per_replica)
        run = load_on(server, names, num_requests=_OPEN_REQUESTS * replicas, arrival=arrival, seed=_OPEN_SEED)
        write_run(run, folder)
        return run

    return _routed(server, load)


def hot_load(server: RunningServer, names: tuple[str, ...]) -> RoutedLoad:
    """One adapter with 90% of the requests beside all others, in a closed loop, after a warm-up of the same kind."""
    hot = HotSetPopularity(kind="hot_set", size=1, share=0.9, rotate_after=_HOT_REQUESTS)

    def load(num_requests: int, seed: int) -> RunResult:
        return load_on(server, names, num_requests=num_requests, streams=_HOT_STREAMS, popularity=hot, seed=seed)

    load(_HOT_WARM_UP, _HOT_WARM_UP_SEED)
    return _routed(server, lambda: load(_HOT_REQUESTS, _HOT_SEED))


def _routed(server: RunningServer, load: Callable[[], RunResult]) -> RoutedLoad:
    before = metric_total(metrics_of(server.url), _LOADS)
    run = load()
    require_success(run.records, server.url)
    return RoutedLoad(
        num_requests=len(run.records),
        num_loads=metric_total(metrics_of(server.url), _LOADS) - before,
        ttft_p99_ms=1000 * percentile(values_of(run.records, "ttft"), 99),
        tokens_per_s=sum(record.num_completion_tokens for record in run.records) / run.duration_s,
    )


def routing_results(random: RoutedLoad, affinity: RoutedLoad) -> tuple[BenchResult, ...]:
    """Affinity beside random routing; a run of each, with the same arrivals."""
    title = f"Zipf, {affinity.num_requests} requests in an open loop: {{}} (baseline: random routing)"
    return (
        compared(title.format("cold loads"), "loads", random.num_loads, affinity.num_loads, most=MOST_COLD_LOADS),
        compared(title.format("TTFT p99"), "ms", random.ttft_p99_ms, affinity.ttft_p99_ms, most=MOST_TTFT_P99),
    )


def hot_results(sticky: RoutedLoad, affinity: RoutedLoad) -> tuple[BenchResult, ...]:
    """Copies of a hot adapter beside one replica for each adapter; a run of each."""
    title = f"one adapter has 90%, {_HOT_STREAMS} streams: {{}} (baseline: adapters stay on one replica)"
    throughput = sticky.tokens_per_s, affinity.tokens_per_s
    return (
        compared(title.format("throughput"), "tok/s", *throughput, least=LEAST_HOT_THROUGHPUT),
        compared(title.format("TTFT p99"), "ms", sticky.ttft_p99_ms, affinity.ttft_p99_ms),
    )
