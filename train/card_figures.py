"""Sections of the model card on what was measured before publication: metrics, slices, robustness, gates."""

from collections.abc import Sequence

from adapters.figure_table import difference, figure_name, interval
from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import ManifestDraft


def metric_section(figures: Sequence[FigureRecord]) -> list[str]:
    """The domain's metrics, whole and by slice."""
    chosen = [figure for figure in figures if figure.kind == "metric"]
    if not chosen:
        return []
    text = "Metrics of the domain, the first of which decides, and by slice. The difference is paired by question."
    return ["### Metrics", text, _table(chosen)]


def robustness_section(figures: Sequence[FigureRecord]) -> list[str]:
    """Perturbed copies of held-out questions."""
    chosen = [figure for figure in figures if figure.kind == "robustness"]
    if not chosen:
        return []
    return ["### Robustness", "Perturbed copies of held-out questions.", _table(chosen)]


def gates_section(draft: ManifestDraft) -> list[str]:
    """Each condition for becoming stable by itself, with what it found."""
    if not draft.gates:
        return []
    outcome = "failed" if draft.unmet_gates else "passed"
    lines = [f"- {'met' if gate.is_met else '**not met**'}: {_plain(gate.finding)}" for gate in draft.gates]
    return ["## Gates", f"This version {outcome} its gates when it was published.", "\n".join(lines)]


def _table(figures: Sequence[FigureRecord]) -> str:
    head = ["| figure | base (95% interval) | adapter (95% interval) | difference (* beyond chance) | n |"]
    cells = (
        (_plain(figure_name(f)), interval(f.base), interval(f.adapter), _plain(difference(f)), _count(f))
        for f in figures
    )
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*head, "|---|---|---|---|---|", *rows])


def _count(figure: FigureRecord) -> str:
    return f"{figure.adapter.n}" + (f" ({figure.num_left_out} left out)" if figure.num_left_out else "")


def _plain(text: str) -> str:
    """Classes and file names as they are: no markup, and within a cell."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
