"""`lorikeet simulate`: what a fleet of servers would do with a load, from a load test of one."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config.home import Home
from config.progress import Progress, shown
from config.terminal import make_console
from loadtest.load_cli import HomeFolder, errors_shown, now_text

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.load.records import RunResult
    from loadtest.report.slo import Slo
    from loadtest.simulate.fleet import Policy
    from loadtest.simulate.plan import Demand, FleetRow, Repeated
    from loadtest.simulate.replica import ServerModel


def simulate(
    run: Annotated[Path, typer.Argument(help="Folder of a `lorikeet loadtest run` of one server.")],
    replicas: Annotated[
        list[int] | None, typer.Option(min=1, help="Servers; may be repeated. Default: 1, 2, 4.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="random, two_choices, affinity or placement; may be repeated. Default: all."),
    ] = None,
    adapters: Annotated[int | None, typer.Option(min=1, help="Number of adapters; default: the run's.")] = None,
    zipf: Annotated[float, typer.Option(min=0, help="The adapter of rank k gets 1 / k**ZIPF of the requests.")] = 1.0,
    churn: Annotated[
        int | None, typer.Option(min=1, help="Requests after which the adapters' ranks move on by one.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests per second; default: the run's.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Requests of each simulated fleet.")] = 20_000,
    slo: Annotated[
        str | None, typer.Option(help="e.g. ttft=500ms,e2e=5s (their p99): find the smallest fleet within it.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Largest fleet to try for the SLO.")] = 1000,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="The server's setting.")] = 32,
    max_loras: Annotated[int, typer.Option(min=1, help="The server's setting.")] = 16,
    max_cpu_loras: Annotated[int, typer.Option(min=1, help="The server's setting.")] = 64,
    load_s: Annotated[float | None, typer.Option(min=0, help="Seconds of a cold load, where the run has none.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Run of a real fleet (--replicas once, --policy once) to hold the simulation to."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output folder; default: under the state folder.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 13,
    home: HomeFolder = Path("var"),
) -> None:
    """Simulate fleets of a measured server: cold loads, TTFT, cost, and how many servers a load takes."""
    from loadtest.load.files import read_run
    from loadtest.report.slo import parse_slo
    from loadtest.simulate.calibration import Limits, calibrate
    from loadtest.simulate.plan import SimulationReport
    from loadtest.simulate.report import tables, write_simulation

    console = make_console()
    with errors_shown():
        policies, sizes = _policies(policy), sorted(set(replicas or (1, 2, 4)))
        limit, calibrated = parse_slo(slo) if slo else None, read_run(run)
        model = calibrate(calibrated, Limits(max_num_seqs, max_loras, max_cpu_loras), load_s)
        real = calibrated if against is None else read_run(against)
        repeated = _repeated(model, real, sizes if against else [1], policies if against else policies[:1], seed)
        demand = _demand(calibrated, num_requests, rate, adapters, zipf, churn, seed)
    rows, recommended = _fleets(console, model, demand, sizes, policies, limit, most)
    report = SimulationReport(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        calibrated_on=calibrated.name,
        machine=calibrated.machine,
        model={name: float(value) for name, value in asdict(model).items()},
        demand=demand,
        repeated=repeated,
        repeated_on=real.name,
        rows=rows,
        slo=limit,
        recommended=recommended,
    )
    path = write_simulation(report, output or Home(home).loadtests / f"simulation-{now_text()}")
    for part in tables(report):
        console.print(part)
    console.print(f"{path}", markup=False)


def _policies(wanted: Sequence[str] | None) -> "tuple[Policy, ...]":
    from loadtest.errors import LoadtestError
    from loadtest.simulate.fleet import POLICIES

    unknown = sorted(set(wanted or ()) - set(POLICIES))
    if unknown:
        raise LoadtestError(f"--policy {unknown[0]!r} is unknown. Choose one of {', '.join(POLICIES)}.")
    return tuple(own for own in POLICIES if not wanted or own in wanted)


def _repeated(
    model: "ServerModel", real: "RunResult", sizes: Sequence[int], policies: "Sequence[Policy]", seed: int
) -> "tuple[Repeated, ...]":
    """The real run's requests, simulated on as many servers."""
    from loadtest.errors import LoadtestError
    from loadtest.simulate.calibration import requests_of
    from loadtest.simulate.fleet import simulate as simulate_fleet
    from loadtest.simulate.plan import compare_with_run

    if (len(sizes), len(policies)) != (1, 1):
        raise LoadtestError("--against needs one --replicas and one --policy: those of the real servers.")
    return compare_with_run(real, simulate_fleet(model, requests_of(real), sizes[0], policies[0], seed))


def _demand(
    calibrated: "RunResult",
    num_requests: int,
    rate: float | None,
    adapters: int | None,
    zipf: float,
    churn: int | None,
    seed: int,
) -> "Demand":
    """What is not given is the run's."""
    from loadtest.simulate.calibration import requests_of
    from loadtest.simulate.plan import Demand

    own = requests_of(calibrated)
    length_s = max(own[-1].at_s - own[0].at_s, 1e-9)
    return Demand(
        num_requests=num_requests,
        rate=rate or round(len(own) / length_s, 3),
        num_adapters=adapters or max(1, len({request.adapter for request in own} - {None})),
        zipf=zipf,
        churn_every=churn,
        seed=seed,
        lengths=tuple((request.prompt_tokens, request.answer_tokens) for request in own),
    )


def _fleets(
    console: "Console",
    model: "ServerModel",
    demand: "Demand",
    sizes: Sequence[int],
    policies: "Sequence[Policy]",
    slo: "Slo | None",
    most: int,
) -> "tuple[tuple[FleetRow, ...], dict[str, int | None]]":
    """All fleets that were simulated, and with an SLO the smallest one within it by policy."""
    from loadtest.simulate.fleet import POLICIES
    from loadtest.simulate.plan import row_of, simulate_fleets, smallest_fleet

    num_fleets = len(sizes) * len(policies)
    with shown(Progress(f"simulate {num_fleets} fleets", num_fleets * demand.num_requests, "requests"), console) as bar:
        found = simulate_fleets(model, demand, sizes, policies, bar.advance)
    recommended: dict[str, int | None] = {}
    if slo is not None:
        with shown(Progress(f"find the smallest fleet within {slo}", len(policies), "policies"), console) as bar:
            for policy in policies:
                recommended[policy] = smallest_fleet(model, demand, policy, slo, most, found.append)
                bar.advance()
    shown_sizes = {(size, policy) for policy, best in recommended.items() for size in (*sizes, best)}
    rows = {
        (own.num_replicas, POLICIES.index(own.policy)): row_of(own, slo)
        for own in found
        if slo is None or (own.num_replicas, own.policy) in shown_sizes
    }
    return tuple(rows[key] for key in sorted(rows)), recommended
