"""Score by perturbation in a terminal, and the questions that lose most."""

from typing import TYPE_CHECKING

from rich.table import Table

from loadtest.evaluation.page import value_text
from loadtest.evaluation.report import EvaluationReport, PerturbedModel, RobustnessReport

if TYPE_CHECKING:
    from rich.console import Console

_NUM_WORST = 5
_MAX_CHARS = 90


def print_robustness(console: "Console", report: EvaluationReport) -> None:
    """Print the table, and for each model one question of the perturbations that cost it most."""
    found = report.robustness
    if found is None:
        return
    names = [model.served_by for model in report.models]
    table = Table("perturbation", title=f"{report.domain}: {found.metric} of {found.num_drawn} perturbed questions")
    for name in names:
        table.add_column(name)
        table.add_column("minus unperturbed")
    table.add_row("unperturbed", *(cell for value in found.plain for cell in (value_text(value), "")))
    for row in found.perturbations:
        cells = [cell for model in row.models for cell in _cells(model)]
        table.add_row(row.perturbation, *(cells or ["not asked", ""] * len(names)))
    console.print(table)
    for row in found.perturbations:
        if row.num_not_asked:
            console.print(f"{row.perturbation}: {row.num_not_asked} not asked: {row.not_asked_because}", markup=False)
    for number, name in enumerate(names):
        for line in _worst(found, number):
            console.print(f"{name}, {line}", markup=False, highlight=False)


def _cells(model: PerturbedModel) -> tuple[str, str]:
    left_out = f", {model.num_left_out} left out" if model.num_left_out else ""
    difference = "another question" if model.difference is None else value_text(model.difference)
    return value_text(model.score) + left_out, difference


def _worst(found: RobustnessReport, number: int) -> list[str]:
    """The first question of each of the perturbations with the largest losses."""
    asked = [(row.perturbation, row.models[number]) for row in found.perturbations if row.models]
    asked = [(name, model) for name, model in asked if model.worst and model.difference is not None]
    asked.sort(key=lambda pair: -abs(pair[1].difference.value if pair[1].difference else 0))
    lines = []
    for name, model in asked[:_NUM_WORST]:
        item = model.worst[0]
        variant = f" ({item.variant})" if item.variant else ""
        lines.append(f"{name}{variant}: {_end(item.question)} -> {_end(item.answer)}; expected {_end(item.expected)}")
    return lines


def _end(text: str) -> str:
    """Quoted; of a long text its end."""
    return repr(text if len(text) <= _MAX_CHARS else f"…{text[-_MAX_CHARS:]}")
