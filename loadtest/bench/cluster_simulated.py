"""How far `lorikeet simulate` is from a real run of two replicas, calibrated on a run of one."""

from config.serve import ServeConfig
from loadtest.bench.results import BenchResult
from loadtest.load.records import RunResult
from loadtest.simulate.calibration import Limits, calibrate, requests_of
from loadtest.simulate.fleet import simulate
from loadtest.simulate.plan import compare_with_run

MOST_ERROR = 0.15
_SEED = 13


def simulated_results(one: RunResult, two: RunResult, config: ServeConfig) -> tuple[BenchResult, ...]:
    """The simulation's figures of the run of two replicas, beside the real ones.

    Raises:
        LoadtestError: The run of one cannot calibrate a simulation.
    """
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
