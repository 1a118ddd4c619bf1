"""`lorikeet bench cluster`: two replicas behind Ray Serve, and what its ingress costs one replica.

Each kind of server runs alone, because the machine has cores for two engines. 24 adapters behind 4 slots by Zipf, with
affinity and at random; one adapter with 90% of the requests; a replica that is killed, one that comes and goes; the
simulation of two replicas beside a real run; one replica beside `lorikeet serve`. Without compilation, for short
starts. Measurements are kept in `var/bench-cluster` until all are complete, so an interrupted run continues, and a
failed phase is measured again by the next run.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from config.cluster import AutoscalingConfig
from config.home import Home
from config.serve import ServeConfig
from loadtest.bench.cluster_faults import (
    SCALING,
    Kill,
    Scaling,
    kill_a_replica,
    kill_results,
    scale_up_and_down,
    scaling_results,
)
from loadtest.bench.cluster_ingress import IngressCosts, ingress_costs, ingress_results
from loadtest.bench.cluster_kept import KeptMeasurements
from loadtest.bench.cluster_routing import (
    ClosedLoopRate,
    RoutedLoad,
    closed_loop_rate,
    hot_load,
    hot_results,
    open_load,
    routing_results,
)
from loadtest.bench.cluster_server import ray_server, replicas_of, warm_up
from loadtest.bench.cluster_simulated import simulated_results
from loadtest.bench.copies import copy_adapter
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, result_line
from loadtest.bench.server import RunningServer, ServerError
from loadtest.bench.servers import kept_logs, made_folder, our_server, serve_config
from loadtest.errors import LoadtestError, TargetError
from loadtest.load.files import read_run

NUM_ADAPTERS = 24
NUM_SLOTS = 4

Start = Callable[[Path], AbstractContextManager[RunningServer]]
"""Starts a server; the folder is for its files."""


def bench_cluster(options: BenchOptions) -> tuple[BenchResult, ...]:
    """All rows, one server after the other. A phase that fails is a row, and the others continue.

    Raises:
        AdapterError: The adapter does not exist.
        TargetError: `--url` is given.
    """
    config = serve_config(
        options, max_loras=NUM_SLOTS, max_cpu_loras=NUM_SLOTS, cpu_compile=False, jobs={"enabled": False}
    )
    runs = options.home.root.resolve() / "bench-cluster"
    kept = KeptMeasurements(runs, options.say)
    with TemporaryDirectory(prefix="lorikeet-bench-") as folder:
        home, names = copy_adapter(options.home, options.adapter, NUM_ADAPTERS, Path(folder) / "home")
        bench = _ClusterBench(options, config, home, names, runs, kept)
        rows = tuple(bench.rows())
    if not bench.has_failed:
        kept.clear()
        options.say(f"To simulate the same runs: {simulate_command(config, runs)}")
    return rows


def simulate_command(config: ServeConfig, runs: Path) -> str:
    """Repeats the comparison of the simulation with the run of two replicas."""
    limits = {name: getattr(config, name) for name in ("max_num_seqs", "max_loras", "max_cpu_loras")}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in limits.items())
    return f"lorikeet simulate {runs / 'one'} --against {runs / 'two'} --replicas 2 --policy placement {options}"


@dataclass
class _ClusterBench:
    """The phases, and what their servers have in common.

    Attributes:
        runs: Folder of the runs that the simulation is compared with.
    """

    options: BenchOptions
    config: ServeConfig
    home: Home
    names: tuple[str, ...]
    runs: Path
    kept: KeptMeasurements
    has_failed: bool = False

    def rows(self) -> Iterator[BenchResult]:
        """Print and return each row as soon as it is known."""
        for phase in (self._random, self._sticky, self._affinity, self._scaling, self._simulated, self._ingress):
            for row in self._tried(phase):
                self.options.say(result_line(row))
                yield row

    def _tried(self, phase: Callable[[], Iterator[BenchResult]]) -> Iterator[BenchResult]:
        name, start_s = phase.__name__.strip("_"), time.monotonic()
        self.options.say(f"phase {name}")
        try:
            yield from phase()
        except (LoadtestError, ServerError, psutil.Error) as error:
            self.has_failed = True
            self.options.say(f"phase {name} failed: {error}")
            yield BenchResult(name=f"phase {name}: failed", value=1, unit="phases", target="none", is_pass=False)
        self.options.say(f"phase {name}: {time.monotonic() - start_s:.0f} s")

    def _random(self) -> Iterator[BenchResult]:
        with self._server(self._two("random")) as server:
            self.kept.measure("random: Zipf", RoutedLoad, lambda: self._open_load(server(), 2, "random"))
        yield from ()

    def _sticky(self) -> Iterator[BenchResult]:
        with self._server(self._two("sticky")) as server:
            self.kept.measure("sticky: hot adapter", RoutedLoad, lambda: hot_load(server(), self.names))
        yield from ()

    def _affinity(self) -> Iterator[BenchResult]:
        with self._server(self._two("affinity")) as server:
            # First of all on its server, as at random: adapters that are loaded already would be an advantage.
            zipf = self.kept.measure("affinity: Zipf", RoutedLoad, lambda: self._open_load(server(), 2, "two"))
            if random := self.kept.find("random: Zipf", RoutedLoad):
                yield from routing_results(random, zipf)
            hot = self.kept.measure("affinity: hot adapter", RoutedLoad, lambda: hot_load(server(), self.names))
            if sticky := self.kept.find("sticky: hot adapter", RoutedLoad):
                yield from hot_results(sticky, hot)
            names = self.names[:NUM_SLOTS]
            kill = self.kept.measure("affinity: SIGKILL", Kill, lambda: kill_a_replica(server(), names, number=2))
            yield from kill_results(kill)

    def _scaling(self) -> Iterator[BenchResult]:
        config = self.config.model_copy(update={"autoscaling": AutoscalingConfig(**SCALING)})

        def start(folder: Path) -> AbstractContextManager[RunningServer]:
            return ray_server(config, self.home, folder, self.options, 1, max_replicas=2)

        with self._server(start) as server:
            self.kept.measure("one replica: Zipf", RoutedLoad, lambda: self._one_load(server()))
            names = self.names[:NUM_SLOTS]
            yield from scaling_results(
                self.kept.measure("1 -> 2 -> 1", Scaling, lambda: scale_up_and_down(server(), names))
            )

    def _simulated(self) -> Iterator[BenchResult]:
        for name in ("one replica: Zipf", "affinity: Zipf"):
            if self.kept.find(name, RoutedLoad) is None:  # else a file of an earlier run would be read
                raise TargetError(f"The run {name!r} is missing, so there is nothing to compare a simulation with.")
        yield from simulated_results(read_run(self.runs / "one"), read_run(self.runs / "two"), self.config)

    def _ingress(self) -> Iterator[BenchResult]:
        yield from ingress_results(self.kept.measure("ingress", IngressCosts, self._ingress_costs))

    def _ingress_costs(self) -> IngressCosts:
        options, config = self.options, self.config
        with (
            kept_logs() as folder,
            our_server(config, self.home, made_folder(folder / "single"), options.environment) as single,
            ray_server(config, self.home, made_folder(folder / "replica"), options, 1) as replica,
        ):
            warm_up(single, config)
            return ingress_costs(single, replica, self.names[0], options.rounds, options.rest_s)

    def _open_load(self, server: RunningServer, replicas: int, folder: str) -> RoutedLoad:
        base = self.config.served_model_name
        found = self.kept.measure("capacity", ClosedLoopRate, lambda: closed_loop_rate(server, base, replicas))
        return open_load(server, self.names, replicas, found, self.runs / folder)

    def _one_load(self, server: RunningServer) -> RoutedLoad:
        load = self._open_load(server, 1, "one")
        if len(replicas_of(server.url)) != 1:
            raise ServerError("A second replica came during the run of one: this machine is too slow, or busy.")
        return load

    def _two(self, routing: str) -> Start:
        return lambda folder: ray_server(self.config, self.home, folder, self.options, 2, routing=routing)

    @contextmanager
    def _server(self, start: Start) -> Iterator[Callable[[], RunningServer]]:
        """A server that is started by the first measurement that is missing."""
        with kept_logs() as folder, ExitStack() as stack:
            yield cache(lambda: stack.enter_context(start(folder)))
