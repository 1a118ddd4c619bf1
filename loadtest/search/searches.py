"""Runs the searches of `capacity.py` and `cliff.py` against real servers."""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from config.home import Home
from config.json_lines import numbered_lines
from config.loadtest import ConstantArrival, GammaArrival, LoadtestConfig, PoissonArrival
from loadtest.bench.copies import copy_adapter
from loadtest.errors import RunFileError, SweepError
from loadtest.load.session import machine, run_load
from loadtest.report.slo import Slo, SloVerdict, judge
from loadtest.search.capacity import Measure, RateRun, find_capacity, most_runs
from loadtest.search.cliff import CliffPoint, find_cliff, recommend
from loadtest.search.report import CapacityReport, CliffReport
from loadtest.search.sweep import Setting, StartServer, own_servers, sweep

Say = Callable[[str], None]


def search_capacity(
    config: LoadtestConfig,
    slo: Slo,
    bounds: tuple[float, float, float, int],
    runs_file: Path,
    datasets: Path,
    *,
    is_resumed: bool = False,
    api_key: str | None = None,
    pause_s: float = 2.0,
    say: Say = lambda line: None,
) -> CapacityReport:
    """Search the capacity of a running server. Every run is appended to `runs_file`, so a search can be resumed.

    Args:
        bounds: Low and high rate, tolerance, most runs; see `find_capacity`.
        pause_s: Pause after each run, so that an overloaded server's backlog does not affect the next one.

    Raises:
        SweepError: The arrivals have no rate to search, the bounds are impossible, or a run was interrupted.
        RunFileError: Resumed, but `runs_file` is missing, broken or of another SLO.
        TargetError: The server does not respond.
    """
    rate_of(config)
    low, high, tolerance, max_runs = bounds
    started = datetime.now(UTC)
    earlier = read_runs(runs_file, slo) if is_resumed else ()
    if not is_resumed:
        runs_file.unlink(missing_ok=True)
    seconds: list[float] = []
    measure = _timed(_measure_with(config, slo, datasets, api_key, pause_s), seconds)

    def on_run(run: RateRun) -> None:
        _append(runs_file, run)
        left = max(0, min(most_runs(low, high, tolerance), max_runs) - len(earlier) - len(seconds))
        say(
            f"{run.rate:.3g} requests/s {'hold' if run.verdict.is_met else 'fail'}: {run.verdict.reason} "
            f"(at most {left} more runs, {_minutes(left * seconds[-1])})"
        )

    result = find_capacity(measure, low, high, tolerance, max_runs, runs=earlier, on_run=on_run)
    return CapacityReport(
        url=config.url,
        started_at=started.isoformat(timespec="seconds"),
        machine=machine(),
        slo=slo,
        workload=config.model_dump(mode="json"),
        result=result,
    )


def rate_of(config: LoadtestConfig) -> PoissonArrival | GammaArrival | ConstantArrival:
    """The arrivals, if they have a single rate.

    Raises:
        SweepError: They have none.
    """
    if isinstance(config.arrival, PoissonArrival | GammaArrival | ConstantArrival):
        return config.arrival
    raise SweepError(
        f"A capacity is a rate, but arrivals of kind {config.arrival.kind!r} have no single rate. "
        "Use poisson, gamma or constant."
    )


def read_runs(path: Path, slo: Slo) -> tuple[RateRun, ...]:
    """Runs of an earlier search.

    Raises:
        RunFileError: The file is missing, broken or of another SLO.
    """
    try:
        lines = numbered_lines(path.read_text(encoding="utf-8"))
        runs = tuple(RateRun.model_validate_json(line) for _, line in lines)
    except OSError as error:
        raise RunFileError(f"{str(path)!r}: {error.strerror}. Leave out --resume to start a search.") from error
    except ValidationError as error:
        raise RunFileError(f"{str(path)!r} holds no runs. Leave out --resume to start a search.") from error
    if other := next((run.verdict.slo for run in runs if run.verdict.slo != slo), None):
        raise RunFileError(
            f"{str(path)!r} belongs to SLO {other}, not {slo}. Give the same SLO, or leave out --resume."
        )
    return runs


@dataclass(frozen=True)
class CliffPlan:
    """The sweep's settings and servers."""

    config: LoadtestConfig
    settings: tuple[Setting, ...]
    working_sets: tuple[int, ...]
    factor: float
    wanted: int | None
    adapter: str
    serve_file: Path
    home: Home
    is_running: bool
    """Whether a server runs already at the configuration's URL, with the one setting that is given."""


def search_cliff(plan: CliffPlan, say: Say = lambda line: None) -> CliffReport:
    """Sweep, find the cliff of each setting, recommend one.

    Raises:
        SweepError: A running server was given several settings, or fewer models than the largest working set.
        AdapterError: The adapter to copy is not there.
        ConfigError: The servers' configuration cannot be read.
        ServerError: A server did not become ready.
        TargetError: The server does not respond.
    """
    started = datetime.now(UTC)
    if plan.is_running and len(plan.settings) > 1:
        raise SweepError(
            f"A running server has one setting; got {len(plan.settings)}. Leave out --url to start temporary servers."
        )
    with tempfile.TemporaryDirectory(prefix="lorikeet-cliff-") as folder:
        config, start = _target(plan, Path(folder) / "home")
        points = sweep(config, plan.settings, plan.working_sets, start, plan.home.datasets, _narrator(plan, say))
    by_setting = [
        [p for p in points if (p.max_loras, p.max_cpu_loras) == (s.max_loras, s.max_cpu_loras)] for s in plan.settings
    ]
    cliffs = tuple(find_cliff(group, plan.factor) for group in by_setting)
    return CliffReport(
        started_at=started.isoformat(timespec="seconds"),
        machine=machine(),
        workload=config.model_dump(mode="json"),
        factor=plan.factor,
        cliffs=cliffs,
        recommendation=recommend(cliffs, plan.wanted),
    )


def _target(plan: CliffPlan, folder: Path) -> tuple[LoadtestConfig, StartServer]:
    """The load with its actual models, and a function that starts the server."""
    if plan.is_running:
        return plan.config, lambda _: nullcontext(plan.config.url)
    copies, names = copy_adapter(plan.home, plan.adapter, max(plan.working_sets), folder)
    mix = plan.config.mix.model_copy(update={"models": names})
    return plan.config.model_copy(update={"mix": mix}), own_servers(plan.serve_file, copies)


def _narrator(plan: CliffPlan, say: Say) -> Callable[[CliffPoint], None]:
    total, start_s, num_done = len(plan.settings) * len(plan.working_sets), time.perf_counter(), 0

    def on_point(point: CliffPoint) -> None:
        nonlocal num_done
        num_done += 1
        left_s = (time.perf_counter() - start_s) / num_done * (total - num_done)
        ttft = "no answer" if point.ttft_p50_s is None else f"TTFT p50 {1000 * point.ttft_p50_s:.0f} ms"
        say(
            f"max_loras {point.max_loras}, max_cpu_loras {point.max_cpu_loras}, {point.working_set} adapters: {ttft}, "
            f"{100 * point.cold_share:.0f}% cold ({num_done}/{total}, about {_minutes(left_s)})"
        )

    return on_point


def _measure_with(config: LoadtestConfig, slo: Slo, datasets: Path, api_key: str | None, pause_s: float) -> Measure:
    def measure(rate: float) -> SloVerdict:
        arrival = rate_of(config).model_copy(update={"rate": rate})
        # An overloaded server must not make a search wait longer than it measures.
        drain_s = min(config.drain_timeout_s, config.duration_s)
        one_rate = config.model_copy(update={"arrival": arrival, "drain_timeout_s": drain_s})
        result = run_load(one_rate, datasets, name=f"{rate:.3g} requests/s", api_key=api_key)
        if result.was_stopped:
            raise SweepError("Interrupted. Resume with --resume and the same --output.")
        time.sleep(pause_s)
        return judge(result, slo)

    return measure


def _timed(measure: Measure, seconds: list[float]) -> Measure:
    def timed(rate: float) -> SloVerdict:
        start_s = time.perf_counter()
        verdict = measure(rate)
        seconds.append(time.perf_counter() - start_s)
        return verdict

    return timed


def _append(path: Path, run: RateRun) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(run.model_dump_json() + "\n")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
