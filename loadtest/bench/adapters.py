"""`lorikeet bench adapters`: what adapters cost. Throughput of 16 streams for the base alone, for one adapter, and for
the base mixed with two adapters, on one server, each beside the base of the same minutes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from config.load import load_serve
from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from loadtest.bench.alternate import alternate
from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import successful_run
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import tree_usage
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.server import running_server
from loadtest.errors import TargetError
from loadtest.report.stats import summarize

NUM_STREAMS = 16
NUM_TOKENS = 32
NUM_WORDS = 48
_WAVES = 3
"""Requests of one measurement, in full batches: every stream gets as many."""


@dataclass(frozen=True)
class ServerUnderTest:
    """A server with its models."""

    url: str
    base: str
    adapters: tuple[str, str]
    pid: int | None = None


def bench_adapters(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Base against adapter, and base against the mix.

    Raises:
        ServerError: Our own server did not become ready.
        TargetError: The server given is not there, or a request failed.
    """
    with _target(options) as target:
        base, one = (target.base,), (target.adapters[0],)
        mixed = (target.base, *target.adapters)
        for models in (base, mixed):  # first loads and first kernels are not what is measured
            tokens_per_s(target.url, models)
        options.say(f"{options.rounds} rounds of {NUM_STREAMS} streams: base and one adapter, then base and the mix")
        measure = partial(tokens_per_s, target.url)
        pairs = [
            alternate(partial(measure, base), partial(measure, other), options.rounds, options.pause_s)
            for other in (one, mixed)
        ]
        memory = tuple(_memory(target.pid)) if target.pid is not None else ()
    return (
        BenchResult(name="base", value=pairs[0].baseline, unit="tok/s"),
        paired("one adapter", "tok/s", pairs[0]),
        paired("base and 2 adapters mixed", "tok/s", pairs[1]),
        *memory,
    )


def _memory(pid: int) -> Iterator[BenchResult]:
    resident = tree_usage(pid).resident_bytes
    yield BenchResult(name="resident memory of the server's processes", value=resident / 1e6, unit="MB")


def tokens_per_s(url: str, models: tuple[str, ...]) -> float:
    """Output tokens per second of NUM_STREAMS users who ask again as soon as they are answered.

    Raises:
        TargetError: A request failed: the figure would be of another load.
        LoadtestError: Somebody interrupted it.
    """
    config = LoadtestConfig(
        url=url,
        mix=MixConfig(models=models),
        arrival=ClosedArrival(kind="closed", concurrency=NUM_STREAMS),
        num_requests=_WAVES * NUM_STREAMS,
        duration_s=300,
        prompts=SyntheticPrompts(num_words=FixedLength(value=NUM_WORDS)),
        max_tokens=FixedLength(value=NUM_TOKENS),
    )
    return summarize(successful_run(config)).output_tokens_per_s


@contextmanager
def _target(options: BenchOptions) -> Iterator[ServerUnderTest]:
    """The server that was given, else one of our own with two copies of an adapter."""
    if options.url is not None:
        yield _given(options.url, options.models)
        return
    with TemporaryDirectory(prefix="lorikeet-bench-") as folder:
        copies, names = copy_adapter(options.home, options.adapter, 2, Path(folder) / "home")
        with running_server(options.serve_file, copies.root, Path(folder) / "serve.log") as server:
            base = load_serve(options.serve_file).served_model_name
            yield ServerUnderTest(f"{server.url}/v1", base, (names[0], names[1]), server.pid)


def _given(url: str, models: tuple[str, ...]) -> ServerUnderTest:
    if len(models) != 3:
        raise TargetError(f"Give three --model with --url: the base and two adapters; got {list(models)}.")
    return ServerUnderTest(url, models[0], (models[1], models[2]))
