"""How far `lorikeet simulate` is from a real run of two replicas, calibrated on a run of one."""

from config.loadtest import PoissonArrival
from config.serve import ServeConfig
from loadtest.bench.cluster_server import load_on
from loadtest.bench.results import BenchResult
from loadtest.bench.server import RunningServer
from loadtest.load.records import RunResult
from loadtest.simulate.calibration import Limits, calibrate, requests_of
from loadtest.simulate.fleet import simulate
from loadtest.simulate.plan import compare_with_run

MOST_ERROR = 0.15
RATE = 1.5
"""Requests per second and replica, of both runs."""
_DURATION_S = 40.0
_SEED = 13


def open_load(server: RunningServer, names: tuple[str, ...], replicas: int, seed: int) -> RunResult:
    """Arrivals that do not wait for answers, in proportion to the replicas."""
    return load_on(server, names, duration_s=_DURATION_S, arrival=PoissonArrival(rate=RATE * replicas), seed=seed)


def simulated_results(one: RunResult, two: RunResult, config: ServeConfig) -> tuple[BenchResult, ...]:
    """The simulation's figures of the run of two replicas, beside the real ones."""
    model = calibrate(one, Limits(config.max_num_seqs, config.max_loras, config.max_cpu_loras))
    pairs = compare_with_run(two, simulate(model, requests_of(two), 2, "placement", _SEED))
    return tuple(
        BenchResult(
            name=f"simulated run of two replicas: {pair.name} (baseline: the real run)",
            value=pair.simulated,
            unit="",
            baseline=pair.real,
            ratio=1 + pair.error,
            target=f"within {MOST_ERROR:.0%}",
            is_pass=abs(pair.error) <= MOST_ERROR,
        )
        for pair in pairs
    )
