"""The quality report in a terminal, narrow enough for 80 columns."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from config.terminal import labelled, print_heading
from serve.monitor.report.figures import AdapterFigures, Decision, QualityReport, VersionFigures
from serve.monitor.report.words import NONE, agreed, at, difference, kappa, last_drift_steps, percent, users
from serve.monitor.trial.state import TrialState

_MAX_DECISIONS = 8


def print_report(report: QualityReport, console: Console) -> None:
    """Print the figures of every adapter, and what is missing."""
    for adapter in report.adapters:
        print_heading(console, adapter.name)
        console.print(_versions(adapter))
        if adapter.judges:
            console.print(_judges(adapter))
        _print_drift(adapter, console)
        if adapter.trial is not None:
            _print_trial(adapter.trial, console)
        if adapter.decisions:
            console.print(_decisions(adapter))
        for missing in adapter.missing:
            console.print(labelled(f"No {missing.what}.", "yellow", missing.how))
    if not report.adapters:
        console.print("No data yet: no adapter is published, and no server has stored samples.")


def _versions(adapter: AdapterFigures) -> Table:
    table = Table("version", "held-out now", "at publish", "judge", box=SIMPLE_HEAD)
    for name in ("samples", "labels", "drift", "nll"):
        table.add_column(name, justify="right")
    for version in adapter.versions:
        table.add_row(
            str(version.version or "base"),
            percent(version.held_out[-1].accuracy if version.held_out else None),
            percent(version.published),
            "\n".join(f"{one.score.value:.2f} of {one.score.n}" for one in version.scores) or NONE,
            str(version.num_samples),
            str(version.num_labels),
            _drift(version),
            f"{version.general[-1].nll:.3f}" if version.general else NONE,
        )
    return table


def _drift(version: VersionFigures) -> str | Text:
    if not version.drift_steps:
        return NONE
    return Text("yes", style="red") if version.drift_steps[-1].is_drift else "no"


def _judges(adapter: AdapterFigures) -> Table:
    head = (Column("judge", overflow="fold"), "grades", "labelled", "agree", "chance", "kappa")
    table = Table(*head, box=SIMPLE_HEAD)
    for judge in adapter.judges:
        agreement = judge.agreement
        table.add_row(
            judge.judge,
            str(judge.num_grades),
            str(agreement.n),
            agreed(agreement.observed, judge),
            agreed(agreement.expected, judge),
            kappa(judge),
        )
    return table


def _print_drift(adapter: AdapterFigures, console: Console) -> None:
    for version, step in last_drift_steps(adapter, most=1):
        if step.is_drift:
            found = f"of version {version}, check {step.number} at {at(step.at_s)}: {step.reason}"
            console.print(labelled("Drift", "red", found))


def _print_trial(trial: TrialState, console: Console) -> None:
    began = trial.began_at[:16].replace("T", " ")
    console.print(f"Trial since {began}: {trial.canary} against {trial.stable}", highlight=False)
    table = Table("comparison", "state", "pairs", "users", "difference", "worst allowed", box=SIMPLE_HEAD)
    for one in trial.comparisons:
        table.add_row(one.name, one.state, str(one.num_pairs), users(one), difference(one), f"{one.most_worse:g}")
    console.print(table)
    console.print(f"Current verdict: {trial.action}: {trial.reason}", highlight=False)


def _decisions(adapter: AdapterFigures) -> Table:
    table = Table(Column("at", no_wrap=True), "what", "moved", "why", box=SIMPLE_HEAD)
    for decision in adapter.decisions[-_MAX_DECISIONS:]:
        what = decision.kind.replace("_", " ") + (f": {decision.action}" if decision.action else "")
        table.add_row(
            decision.at[:16].replace("T", " "),
            what,
            _moved(decision),
            decision.reason,
        )
    return table


def _moved(decision: Decision) -> str:
    """`stable 1 → 2`."""
    words = decision.alias or "", f"{decision.previous} →" if decision.previous else "", str(decision.version or "")
    return " ".join(word for word in words if word)
