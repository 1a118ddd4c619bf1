"""`lorikeet bench quality`: what the quality monitor costs, with its default settings and no judge.

Two servers of ours on the same engine settings, one with the monitor and one without, are measured by turns with the
same prompts, the base and an adapter each. Who is not measured is stopped: else the monitor's probes would slow down
the server that has none. Beside throughput stands CPU time, which a busy machine disturbs far less.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from adapters.store import AdapterStore
from config.monitor import MonitorConfig
from loadtest.bench.alternate import compare_pairs
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.servers import kept_logs, made_folder, our_server, same_threads, serve_config
from loadtest.bench.two_servers import NUM_STREAMS, Measure, measure_servers, tokens_per_s, ttft_p50_ms
from loadtest.copies import copy_adapter
from loadtest.processes import stopped, tree_usage
from loadtest.server import RunningServer

LEAST_RATIO = 0.97
NUM_WAVES = 12
"""Requests of one measurement in full batches: long enough for a turn of probes."""
PROBES_FILE = "probes.json"


@dataclass(frozen=True)
class Server:
    """Its URL, with /v1, how to keep it from running for a while, and the CPU seconds that it has used so far."""

    url: str
    at_rest: Callable[[], AbstractContextManager[None]] = field(repr=False)
    cpu_s: Callable[[], float] = field(repr=False)


@dataclass(frozen=True)
class Servers:
    """The two, and what to ask both for: the name of a row, and the model."""

    on: Server
    off: Server
    models: Mapping[str, str]


def bench_quality(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start both servers and compare them.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    with _both_servers(options) as servers:
        return compare(servers, options, partial(tokens_per_s, waves=NUM_WAVES), ttft_p50_ms)


def compare(servers: Servers, options: BenchOptions, throughput: Measure, ttft: Measure) -> tuple[BenchResult, ...]:
    """Throughput and TTFT for each model.

    Args:
        throughput: In tokens per second.
        ttft: In milliseconds.

    Raises:
        TargetError: A request failed.
    """
    results: list[BenchResult] = []
    for name, model in servers.models.items():
        cpu_s: dict[str, list[float]] = {servers.off.url: [], servers.on.url: []}
        measures = (_alone(servers, throughput, cpu_s), _alone(servers, ttft))
        rounds = measure_servers(servers.off.url, servers.on.url, model, *measures, options)
        streams, alone = compare_pairs(rounds.tokens_per_s), compare_pairs(rounds.ttft_ms)
        cpu = compare_pairs(list(zip(*(of_server[1:] for of_server in cpu_s.values()), strict=True)))  # no warm-up
        options.say(
            f"{name}: {streams.ratio:.3f} of the tok/s without the monitor, {cpu.ratio:.3f} of the CPU time; "
            f"TTFT p50 {alone.ratio:.3f}"
        )
        results += [
            paired(f"{name}: {NUM_STREAMS} streams (baseline: no monitor)", "tok/s", streams, least=LEAST_RATIO),
            paired(f"{name}: CPU time of the same (baseline: no monitor)", "s", cpu),
            paired(f"{name}: TTFT p50, one stream (baseline: no monitor)", "ms", alone),
        ]
    return tuple(results)


def _alone(servers: Servers, measure: Measure, cpu_s: dict[str, list[float]] | None = None) -> Measure:
    """The same figure of a server that has the machine to itself; its CPU time goes to its list in `cpu_s`."""
    of_url = {servers.on.url: servers.on, servers.off.url: servers.off}
    other_of = {servers.on.url: servers.off, servers.off.url: servers.on}

    def measure_alone(url: str, model: str, seed: int) -> float:
        with other_of[url].at_rest():
            before_s = of_url[url].cpu_s()
            figure = measure(url, model, seed)
            if cpu_s is not None:
                cpu_s[url].append(of_url[url].cpu_s() - before_s)
            return figure

    return measure_alone


@contextmanager
def _both_servers(options: BenchOptions) -> Iterator[Servers]:
    with_monitor = serve_config(options, quality=MonitorConfig())
    without = serve_config(options, quality=MonitorConfig(enabled=False))
    environment = same_threads(options)
    with kept_logs() as folder:
        home, (name,) = copy_adapter(options.home, options.adapter, 1, folder / "home")
        target = AdapterStore(home.adapters).resolve(name)
        if not (AdapterStore(home.adapters).folder(target) / PROBES_FILE).exists():
            options.say(f"{options.adapter} has no {PROBES_FILE}: probes and drift do nothing. Train it again.")
        with (
            our_server(with_monitor, home, made_folder(folder / "on"), environment) as on,
            our_server(without, home, made_folder(folder / "off"), environment) as off,
        ):
            models = {"base": with_monitor.served_model_name, "one adapter": str(target)}
            yield Servers(_server(on), _server(off), models)


def _server(running: RunningServer) -> Server:
    return Server(f"{running.url}/v1", partial(stopped, running.pid), lambda: tree_usage(running.pid).cpu_s)
