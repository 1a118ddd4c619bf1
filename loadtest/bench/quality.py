"""`lorikeet bench quality`: what the quality monitor costs, with its default settings and no judge.

One server, whose monitor is paused and resumed alternately (`/admin/quality`), is measured with it and without it. Two
servers would tell less: two processes of the very same code may differ by a tenth for as long as they run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import httpx

from adapters.store.store import AdapterStore
from config.monitor import MonitorConfig
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.copies import copy_adapter
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import tree_usage
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.server import RunningServer
from loadtest.bench.servers import kept_logs, our_server, same_threads, serve_config
from loadtest.bench.two_servers import NUM_STREAMS, Measure, tokens_per_s, ttft_p50_ms
from loadtest.errors import TargetError

LEAST_RATIO = 0.97
NUM_WAVES = 12
"""Requests of one measurement in full batches: some 20 seconds on two cores."""
HELD_OUT_FILE = "held_out.json"
_WARM_UP_SEED, _THROUGHPUT_SEED, _TTFT_SEED = 0, 1000, 2000
_APART = 500
"""Offset between the seeds of a round's two measurements: the same prompts would hit the prefix cache."""
_TIMEOUT_S = 60.0

State = Literal["pause", "resume"]


@dataclass(frozen=True)
class Monitored:
    """A server: its URL, with /v1, how to pause its monitor, the CPU seconds that it has used so far, and what to ask.

    Attributes:
        models: By the name of a row.
    """

    url: str
    become: Callable[[State], None] = field(repr=False)
    cpu_s: Callable[[], float] = field(repr=False)
    models: Mapping[str, str]


def bench_quality(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start a server and compare it with itself.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: The server did not become ready, or a request failed. Its log is kept; the message says where.
    """
    with _server(options) as server:
        return compare(server, options, partial(tokens_per_s, waves=NUM_WAVES), ttft_p50_ms)


def compare(server: Monitored, options: BenchOptions, throughput: Measure, ttft: Measure) -> tuple[BenchResult, ...]:
    """Throughput, its CPU time and TTFT for each model.

    Args:
        throughput: In tokens per second.
        ttft: In milliseconds.

    Raises:
        TargetError: A request failed.
    """
    results: list[BenchResult] = []
    for name, model in server.models.items():
        for state in ("pause", "resume"):  # first loads and first kernels are not what is measured
            _measured(server, state, throughput, model, _WARM_UP_SEED)
        interleaved = partial(_interleaved, server, model=model, options=options)
        full, alone = interleaved(throughput, first_seed=_THROUGHPUT_SEED), interleaved(ttft, first_seed=_TTFT_SEED)
        streams = compare_pairs([(without.figure, with_it.figure) for without, with_it in full])
        cpu = compare_pairs([(without.cpu_s, with_it.cpu_s) for without, with_it in full])
        one = compare_pairs([(without.figure, with_it.figure) for without, with_it in alone])
        options.say(
            f"{name}: {streams.ratio:.3f} of the tok/s without the monitor, {cpu.ratio:.3f} of the CPU time; "
            f"TTFT p50 {one.ratio:.3f}"
        )
        results += [
            paired(f"{name}: {NUM_STREAMS} streams (baseline: monitor paused)", "tok/s", streams, least=LEAST_RATIO),
            paired(f"{name}: CPU time of the same (baseline: monitor paused)", "s", cpu),
            paired(f"{name}: TTFT p50, one stream (baseline: monitor paused)", "ms", one),
        ]
    return tuple(results)


@dataclass(frozen=True)
class _Measured:
    """A figure, and the CPU seconds that the server used for it."""

    figure: float
    cpu_s: float


def _interleaved(
    server: Monitored, measure: Measure, *, model: str, options: BenchOptions, first_seed: int
) -> list[tuple[_Measured, _Measured]]:
    """Without the monitor and with it, with prompts of the same length."""
    without = with_next_seed(partial(_measured, server, "pause", measure, model), first_seed)
    with_it = with_next_seed(partial(_measured, server, "resume", measure, model), first_seed + _APART)
    return measure_pairs(without, with_it, options.rounds, options.rest_s)


def _measured(server: Monitored, state: State, measure: Measure, model: str, seed: int) -> _Measured:
    """One measurement; the monitor works for no longer than that, so that its questions fall into it.

    What it has to write down as it is paused counts as CPU time of the measurement.
    """
    before_s = server.cpu_s()
    server.become(state)
    figure = measure(server.url, model, seed)
    server.become("pause")
    return _Measured(figure, server.cpu_s() - before_s)


@contextmanager
def _server(options: BenchOptions) -> Iterator[Monitored]:
    config = serve_config(options, quality=MonitorConfig())
    environment = same_threads(options)
    with kept_logs() as folder:
        home, (name,) = copy_adapter(options.home, options.adapter, 1, folder / "home")
        store = AdapterStore(home.adapters)
        target = store.resolve(name)
        if not (store.folder(target) / HELD_OUT_FILE).exists():
            options.say(f"{options.adapter} has no {HELD_OUT_FILE}: no held-out questions, no drift. Train it again.")
        with our_server(config, home, folder, environment) as running:
            models = {"base": config.served_model_name, "one adapter": str(target)}
            yield Monitored(f"{running.url}/v1", partial(_become, running), partial(_cpu_s, running), models)


def _cpu_s(running: RunningServer) -> float:
    return tree_usage(running.pid).cpu_s


def _become(running: RunningServer, state: State) -> None:
    answer = httpx.post(f"{running.url}/admin/quality/{state}", timeout=_TIMEOUT_S, trust_env=False)
    if answer.status_code != 200:
        raise TargetError(f"{answer.request.url}: {answer.status_code}: {answer.text[:300]}")
