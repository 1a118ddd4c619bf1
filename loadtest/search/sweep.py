"""Runs a sweep of working sets against servers for `cliff.py`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from config.home import Home
from config.load import load_serve
from config.loadtest import ClosedArrival, LoadtestConfig, MixConfig, OneShotPopularity, UniformPopularity
from config.serve import ServeConfig
from loadtest.bench.server import running_server
from loadtest.errors import SweepError
from loadtest.load.session import run_load
from loadtest.search.cliff import CliffPoint, point_of

StartServer = Callable[["Setting"], AbstractContextManager[str]]
"""Starts a server with a setting; yields its endpoint, which ends with /v1."""


@dataclass(frozen=True)
class Setting:
    """The two server settings that limit adapters."""

    max_loras: int
    max_cpu_loras: int

    def __str__(self) -> str:
        return f"max_loras {self.max_loras}, max_cpu_loras {self.max_cpu_loras}"


def pair_settings(max_loras: Sequence[int], max_cpu_loras: Sequence[int]) -> tuple[Setting, ...]:
    """Pair the n-th values of both lists; a single value is combined with all.

    Raises:
        SweepError: The lengths do not match, or max_cpu_loras is below max_loras.
    """
    longest = max(len(max_loras), len(max_cpu_loras))
    if {len(max_loras), len(max_cpu_loras)} - {1, longest}:
        raise SweepError(
            f"Got {len(max_loras)} of --max-loras and {len(max_cpu_loras)} of --max-cpu-loras. "
            "Give the same number of both, or one value for all."
        )
    slots, in_memory = (list(values) * (longest if len(values) == 1 else 1) for values in (max_loras, max_cpu_loras))
    settings = tuple(Setting(*pair) for pair in zip(slots, in_memory, strict=True))
    if wrong := next((setting for setting in settings if not 1 <= setting.max_loras <= setting.max_cpu_loras), None):
        raise SweepError(f"max_cpu_loras must be at least max_loras, and max_loras at least 1; got {wrong}.")
    return settings


def working_sets_for(settings: Sequence[Setting]) -> tuple[int, ...]:
    """Working set sizes on both sides of every limit: each limit, one more, and twice the largest."""
    limits = {limit for setting in settings for limit in (setting.max_loras, setting.max_cpu_loras)}
    return tuple(sorted({1, *limits, *(limit + 1 for limit in limits), 2 * max(limits)}))


def sweep(
    config: LoadtestConfig,
    settings: Sequence[Setting],
    working_sets: Sequence[int],
    start_server: StartServer,
    datasets: Path,
    on_point: Callable[[CliffPoint], None] = lambda point: None,
) -> tuple[CliffPoint, ...]:
    """Run every working set, small ones first, against a server of each setting.

    Args:
        config: The load; of its models, a working set of n uses the first n.
        datasets: Folder of the built data sets, for prompts of `kind: dataset`.

    Raises:
        SweepError: A working set is larger than the number of models, or the sweep was interrupted.
        ServerError: A server did not become ready.
        TargetError: The server does not respond.
    """
    if not working_sets or not 1 <= min(working_sets) <= max(working_sets) <= len(config.mix.models):
        raise SweepError(
            f"Working sets must lie between 1 and the number of models, {len(config.mix.models)}; got "
            f"{list(working_sets)}. Name more models, or sweep less."
        )
    points = []
    for setting in settings:
        with start_server(setting) as url:
            for size in sorted(working_sets):
                points.append(_measure(config.model_copy(update={"url": url}), setting, size, datasets))
                on_point(points[-1])
    return tuple(points)


def _measure(config: LoadtestConfig, setting: Setting, size: int, datasets: Path) -> CliffPoint:
    """One point: every adapter is asked once, so that all first loads are over, then the load itself runs."""
    models = config.mix.models[:size]
    once = MixConfig(models=models, popularity=OneShotPopularity(kind="one_shot"))
    evenly = config.mix.model_copy(update={"models": models, "popularity": UniformPopularity()})
    # One after the other: a slow machine would take too long to load many at once.
    one_by_one = ClosedArrival(kind="closed", concurrency=1)
    warm_up = {"mix": once, "arrival": one_by_one, "duration_s": 600.0, "num_requests": size}
    first = run_load(config.model_copy(update=warm_up), datasets, name="warm-up")
    result = run_load(config.model_copy(update={"mix": evenly}), datasets, name=f"{size} adapters")
    if first.was_stopped or result.was_stopped:
        raise SweepError("Interrupted.")
    return point_of(result, setting.max_loras, setting.max_cpu_loras, size, config.seed)


def own_servers(serve_file: Path, home: Home) -> StartServer:
    """Servers of ours, one a setting, otherwise configured by a file; they end with their block.

    Raises:
        ConfigError: The file cannot be read.
    """
    serve_config = load_serve(serve_file)

    @contextmanager
    def start(setting: Setting) -> Iterator[str]:
        sizes = {"max_loras": setting.max_loras, "max_cpu_loras": setting.max_cpu_loras}
        config = ServeConfig.model_validate(serve_config.model_dump() | sizes)
        file = home.root / f"serve-{setting.max_loras}-{setting.max_cpu_loras}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with running_server(file, home.root, file.with_suffix(".log")) as server:
            yield f"{server.url}/v1"

    return start
