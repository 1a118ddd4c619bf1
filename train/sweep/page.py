"""The page of a sweep: trials, history, parallel coordinates and importance, in one file without a network."""

import html
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_param_importances
from plotly.graph_objects import Figure

PAGE_FILE = "index.html"


def _importances(study: optuna.Study, target_name: str) -> Figure:
    return plot_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), target_name=target_name)


_PLOTS: dict[str, Callable[..., Figure]] = {
    "Parallel coordinates": plot_parallel_coordinate,
    "Importance of each setting (fANOVA)": _importances,
    "History": plot_optimization_history,
}


def write_page(study: optuna.Study, metric: str, folder: Path) -> Path:
    """Write `index.html`; plotly's script is part of it."""
    parts = [_table(study, metric)]
    has_script = False
    for title, plot in _PLOTS.items():
        try:
            figure = plot(study, target_name=metric)
        except (ValueError, RuntimeError) as error:  # too few trials, or all with one value
            parts.append(f"<h2>{title}</h2><p>Not shown: {html.escape(str(error))}</p>")
            continue
        parts.append(f"<h2>{title}</h2>{figure.to_html(full_html=False, include_plotlyjs=not has_script)}")
        has_script = True
    name = html.escape(study.study_name)
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sweep of {name}</title>'
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}</style></head>"
        f"<body><h1>Sweep of {name}</h1>{''.join(parts)}</body></html>\n"
    )
    page = folder / PAGE_FILE
    temporary = folder / f"{PAGE_FILE}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)
    return page


def _table(study: optuna.Study, metric: str) -> str:
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    names = sorted({name for trial in trials for name in trial.params})
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", "state", metric, *names))
    rows = "".join(f"<tr>{_cells(trial, names)}</tr>" for trial in trials)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _cells(trial: optuna.trial.FrozenTrial, names: list[str]) -> str:
    value = "" if trial.value is None else f"{trial.value:.4f}"
    values = (trial.params.get(name, "") for name in names)
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
    cells = (str(trial.number), trial.state.name.lower(), value, *shown)
    return "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
