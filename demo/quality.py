"""`lorikeet demo --quality`: the server rolls back a bad canary and promotes a good one by its own verdict."""

import asyncio
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from adapters.store.store import AdapterStore
from config.home import Home
from config.load import read_mapping
from config.terminal import print_heading
from demo.canaries import BAD_NOISE, GOOD_NOISE, Canaries, make_canaries
from demo.figures import QualityDemoReport, TrialFigures, machine_name, utc_date
from demo.trial import CONCURRENCY, WEIGHT, try_canary
from loadtest.bench.server import running_server
from quality.held_out import HeldOutSet, read_held_out

ADAPTER = "medical"
_QUALITY = {"verdict": "act", "verdict_interval_s": 1.0, "held_out_interval_s": 1.0, "held_out_at_once": 8}


def run_quality_demo(home: Home, serve_file: Path, console: Console) -> QualityDemoReport:
    """Both trials on one server; the user's own store is only read.

    Raises:
        AdapterError: There is no stable version.
        DatasetError: It has no held-out questions, and its data set is missing.
        ServerError: The server did not become ready.
        NoVerdictError: The demo's traffic did not suffice for a verdict.
        httpx.HTTPError: A request failed.
    """
    scratch = Home(home.demo / "quality")
    print_heading(console, "two canaries of the stable version, in a store of their own")
    canaries = make_canaries(home, scratch, ADAPTER)
    held_out = read_held_out(canaries.store.folder(canaries.stable))
    assert held_out is not None
    config_file = scratch.root / "serve.yaml"
    config_file.write_text(yaml.safe_dump(read_mapping(serve_file) | {"quality": _QUALITY}))
    console.print(
        f"{canaries.stable} is stable; {len(held_out.questions)} held-out questions; the server decides automatically."
    )
    with running_server(config_file, scratch.root, scratch.root / "serve.log") as server:
        trials = asyncio.run(_try_both(server.url, canaries, held_out, console))
        ready_s = server.ready_s
    report = QualityDemoReport(
        date=utc_date(),
        machine=machine_name(),
        concurrency=CONCURRENCY,
        canary_weight=WEIGHT,
        engine_ready_s=round(ready_s, 1),
        trials=trials,
    )
    (scratch.root / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


async def _try_both(
    url: str, canaries: Canaries, held_out: HeldOutSet, console: Console
) -> tuple[TrialFigures, TrialFigures]:
    def say(line: str) -> None:
        console.print(f"  {line}", highlight=False, markup=False)

    bad = f"bad: noise of {BAD_NOISE:g} standard deviations in its weights"
    good = f"good: noise of {GOOD_NOISE:g} standard deviations"
    figures = []
    for target, what in ((canaries.bad, bad), (canaries.good, good)):
        print_heading(console, f"{target}, {what}")
        figures.append(await try_canary(url, AdapterStore(canaries.store.root), target, what, held_out, say))
        say(f"{figures[-1].decision}: {figures[-1].reason}")
    return figures[0], figures[1]


def print_quality_report(report: QualityDemoReport, console: Console) -> None:
    """Decision, reason, and what it took."""
    table = Table(title=f"Canaries at {report.canary_weight:.0%} of the traffic, {report.concurrency} clients")
    for column in ("canary", "decision", "requests", "to it", "questions", "seconds", "reason"):
        table.add_column(column, justify="right" if column in ("requests", "to it", "questions", "seconds") else "left")
    for trial in report.trials:
        table.add_row(
            f"{trial.canary}\n{trial.what}",
            trial.decision.replace("_", " "),
            str(trial.num_requests),
            str(trial.num_canary_requests),
            str(trial.num_questions),
            f"{trial.seconds:.0f}",
            trial.reason,
        )
    console.print(table)
