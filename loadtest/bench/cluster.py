"""`lorikeet bench cluster`: two replicas behind Ray Serve, and what its ingress costs one replica.

Each kind of server runs alone: the machine has cores for two engines. 24 adapters behind 4 slots by Zipf, with affinity
and at random; one adapter with 90% of the requests; a replica that is killed, one that comes and goes; the simulation
of two replicas beside a real run; one replica beside `lorikeet serve`. Without compilation, for short starts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from config.cluster import AutoscalingConfig
from config.home import Home
from config.loadtest import HotSetPopularity
from config.serve import ServeConfig
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.cluster_faults import (
    kill_a_replica,
    kill_results,
    scale_up_and_down,
    scaling_results,
)
from loadtest.bench.cluster_server import load_on, metrics_of, ray_server
from loadtest.bench.cluster_simulated import open_load, simulated_results
from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import ComparedServer, Cost, Load, measure_cost, require_success
from loadtest.bench.manyadapters import metric_total
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, added, paired
from loadtest.bench.server import RunningServer
from loadtest.bench.servers import kept_logs, made_folder, our_server, serve_config
from loadtest.bench.two_servers import ttft_p50_ms
from loadtest.load.records import RunResult
from loadtest.report.stats import percentile, values_of

NUM_ADAPTERS = 24
NUM_SLOTS = 4
NUM_STREAMS = 16
HOT_STREAMS = 32
NUM_REQUESTS = 144
MOST_COLD_LOADS = 0.5
MOST_TTFT_P99 = 0.8
LEAST_HOT_THROUGHPUT = 1.5
LEAST_THROUGHPUT = 0.9
MOST_ADDED_TTFT_MS = 15.0
_LOADS = "lorikeet_adapter_loads_total"
_OVERHEAD_REQUESTS = 32
_SCALING: dict[str, float] = {"target_load": 0.3, "scale_up_after_s": 3, "scale_down_after_s": 6}
"""16 streams are half of a batch: one replica is too few for them, and enough for two streams."""


@dataclass(frozen=True)
class RoutedLoad:
    """One load on two replicas."""

    num_loads: float
    ttft_p99_ms: float
    tokens_per_s: float


def bench_cluster(options: BenchOptions) -> tuple[BenchResult, ...]:
    """All rows, one server after the other.

    Raises:
        AdapterError: The adapter does not exist.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    few = serve_config(options, max_loras=NUM_SLOTS, max_cpu_loras=NUM_SLOTS, cpu_compile=False)
    results: list[BenchResult] = []
    with kept_logs() as folder:
        home, names = copy_adapter(options.home, options.adapter, NUM_ADAPTERS, folder / "home")
        for result in _results(_Setting(options, few, home, names, folder)):
            options.say(f"{result.name}: {result.value:.4g} {result.unit}")
            results.append(result)
    return tuple(results)


@dataclass(frozen=True)
class _Setting:
    """What all servers of the benchmark have in common."""

    options: BenchOptions
    config: ServeConfig
    home: Home
    names: tuple[str, ...]
    folder: Path

    def server(self, routing: str) -> AbstractContextManager[RunningServer]:
        """Two replicas."""
        self.options.say(f"two replicas, routing: {routing}")
        return ray_server(self.config, self.home, made_folder(self.folder / routing), self.options, 2, routing=routing)

    def scaling_server(self) -> AbstractContextManager[RunningServer]:
        """One replica, or two by load."""
        self.options.say("one replica, or two by load")
        config = self.config.model_copy(update={"autoscaling": AutoscalingConfig(**_SCALING)})
        return ray_server(config, self.home, made_folder(self.folder / "scaling"), self.options, 1, max_replicas=2)


def _results(setting: _Setting) -> Iterator[BenchResult]:
    names = setting.names
    with setting.server("random") as server:
        random = zipf_load(server, names)
    with setting.server("sticky") as server:
        sticky = hot_load(server, names)
    with setting.server("affinity") as server:
        yield from routing_results(random, zipf_load(server, names))
        yield from hot_results(sticky, hot_load(server, names))
        two = open_load(server, names, replicas=2, seed=3)
        yield from kill_results(kill_a_replica(server, names[:NUM_SLOTS], number=2))
    with setting.scaling_server() as server:
        one = open_load(server, names, replicas=1, seed=4)
        yield from scaling_results(scale_up_and_down(server, names[:NUM_SLOTS], NUM_STREAMS))
    yield from simulated_results(one, two, setting.config)
    yield from _overhead(setting)


def zipf_load(server: RunningServer, names: tuple[str, ...]) -> RoutedLoad:
    """All adapters, as people ask for them."""
    return _routed(server, partial(load_on, server, names, num_requests=NUM_REQUESTS, streams=NUM_STREAMS, seed=1))


def hot_load(server: RunningServer, names: tuple[str, ...]) -> RoutedLoad:
    """One adapter with 90% of the requests, beside all others."""
    hot = HotSetPopularity(kind="hot_set", size=1, share=0.9, rotate_after=NUM_REQUESTS)
    load = partial(load_on, server, names, num_requests=NUM_REQUESTS, streams=HOT_STREAMS, popularity=hot, seed=2)
    return _routed(server, load)


def _routed(server: RunningServer, load: Callable[[], RunResult]) -> RoutedLoad:
    before = metric_total(metrics_of(server.url), _LOADS)
    run = load()
    require_success(run.records, server.url)
    num_tokens = sum(record.num_completion_tokens for record in run.records)
    return RoutedLoad(
        metric_total(metrics_of(server.url), _LOADS) - before,
        1000 * percentile(values_of(run.records, "ttft"), 99),
        num_tokens / run.duration_s,
    )


def routing_results(random: RoutedLoad, affinity: RoutedLoad) -> tuple[BenchResult, ...]:
    """What affinity changes, beside random routing; a run of each."""

    def of(name: str, unit: str, figure: Callable[[RoutedLoad], float], **target: float) -> BenchResult:
        title = f"Zipf over {NUM_ADAPTERS} adapters, {NUM_SLOTS} slots a replica: {name} (baseline: random routing)"
        return paired(title, unit, compare_pairs([(figure(random), figure(affinity))]), **target)

    return (
        of("cold loads", "loads", lambda load: load.num_loads, most=MOST_COLD_LOADS),
        of("TTFT p99", "ms", lambda load: load.ttft_p99_ms, most=MOST_TTFT_P99),
        of("throughput", "tok/s", lambda load: load.tokens_per_s),
    )


def hot_results(sticky: RoutedLoad, affinity: RoutedLoad) -> tuple[BenchResult, ...]:
    """What a copy of a hot adapter brings, beside one replica for each adapter; a run of each."""

    def of(name: str, unit: str, figure: Callable[[RoutedLoad], float], **target: float) -> BenchResult:
        title = f"one adapter has 90%, {HOT_STREAMS} streams: {name} (baseline: adapters stay on one replica)"
        return paired(title, unit, compare_pairs([(figure(sticky), figure(affinity))]), **target)

    return (
        of("throughput", "tok/s", lambda load: load.tokens_per_s, least=LEAST_HOT_THROUGHPUT),
        of("TTFT p99", "ms", lambda load: load.ttft_p99_ms),
    )


def _overhead(setting: _Setting) -> Iterator[BenchResult]:
    """One replica and a single server, both running, measured alternately."""
    options, folder, name = setting.options, setting.folder, setting.names[0]
    config = serve_config(options, cpu_compile=False)
    options.say("one replica beside a single server")
    with (
        our_server(config, setting.home, made_folder(folder / "single"), options.environment) as single,
        ray_server(config, setting.home, made_folder(folder / "one"), options, 1) as one,
    ):
        sides = [ComparedServer(f"{server.url}/v1", server.pid) for server in (single, one)]
        baseline, candidate = (partial(_cost, side, name) for side in sides)
        for measure in (baseline, candidate):
            measure(0)  # first loads are not what is measured
        costs = measure_pairs(with_next_seed(baseline, 1), with_next_seed(candidate, 1), options.rounds, options.rest_s)
        first, second = (with_next_seed(partial(ttft_p50_ms, side.url, name), 1) for side in sides)
        ttfts = measure_pairs(first, second, options.rounds, options.rest_s)
    yield from overhead_results(costs, ttfts)


def _cost(side: ComparedServer, name: str, seed: int) -> Cost:
    return measure_cost(side, (name,), Load(NUM_STREAMS, _OVERHEAD_REQUESTS), seed)


def overhead_results(
    costs: Sequence[tuple[Cost, Cost]], ttfts_ms: Sequence[tuple[float, float]]
) -> tuple[BenchResult, ...]:
    """What Ray's proxy and the ingress cost; each pair is a round's single server and replica."""
    throughput = compare_pairs([(single.tokens_per_s, one.tokens_per_s) for single, one in costs])
    per_token = compare_pairs([(single.cpu_ms_per_token, one.cpu_ms_per_token) for single, one in costs])
    title = f"one replica, {NUM_STREAMS} streams: {{}} (baseline: `lorikeet serve`)"
    return (
        paired(title.format("throughput"), "tok/s", throughput, least=LEAST_THROUGHPUT),
        paired(title.format("CPU per token"), "ms", per_token),
        added("one replica: TTFT p50 added", "ms", ttfts_ms, below=MOST_ADDED_TTFT_MS),
    )
