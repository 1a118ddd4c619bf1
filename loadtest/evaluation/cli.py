"""`lorikeet eval`: score served models on a domain's held-out split through any OpenAI-compatible endpoint."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from adapters.errors import AdapterError
from config.dataset import DatasetManifest, DatasetRow, held_out_questions, read_dataset, read_split
from config.errors import ConfigError, DatasetError
from config.home import Home
from config.progress import Progress, shown
from config.terminal import make_console, print_error
from loadtest.evaluation.decide_cli import decide
from loadtest.evaluation.human_cli import export_sheet, grade, import_sheet
from quality.errors import MetricError
from quality.metrics.settings import DEFAULT_METRICS, MetricConfig

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from rich.console import Console

    from loadtest.evaluation.asking import Answers
    from loadtest.evaluation.report import EvaluationReport
    from loadtest.evaluation.robustness import PerturbedRows
    from quality.metrics.item import Metric

eval_app = typer.Typer(
    no_args_is_help=True,
    help="Evaluation through the endpoint or offline: run, show, compare, decide, grading by people.",
)
eval_app.command()(decide)
eval_app.command("export-sheet")(export_sheet)
eval_app.command("import-sheet")(import_sheet)
eval_app.command("grade")(grade)
HomeFolder = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")]
_METRICS: TypeAdapter[tuple[MetricConfig, ...]] = TypeAdapter(tuple[MetricConfig, ...])


@eval_app.command()
def run(
    model: Annotated[str, typer.Argument(help="Model reference: medical, medical@3, or `base`.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="Model to compare with, by the same questions; repeatable. `base`: the base."),
    ] = None,
    domain: Annotated[str, typer.Option(help="Built data set; default: the model's name.")] = "",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric (docs/evaluation.md), by name or as YAML: '{name: regex, pattern: \\d+}'; repeatable. "
            "Default: those of the domain."
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint.")] = "http://127.0.0.1:8000/v1",
    few_shot: Annotated[bool, typer.Option(help="Add the data set's few-shot examples to the prompt.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions to ask; default: all.")] = None,
    robustness: Annotated[
        bool | None,
        typer.Option(help="Ask perturbed copies too; default: if `evaluation.robustness` is set.", show_default=False),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 16,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="API key of the endpoint.")] = "none",
    offline: Annotated[bool, typer.Option(help="Answer by transformers on this machine; no server is asked.")] = False,
    home: HomeFolder = Path("var"),
) -> None:
    """Ask models the held-out questions of a domain; write figures, paired differences and a page."""
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.judge_cli import check_api_keys, judge_answers
    from loadtest.evaluation.report import make_report
    from loadtest.evaluation.robustness import robustness_report
    from quality.metrics.judged import without_judges

    name, state, console = domain or model.partition("@")[0], Home(home), make_console()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        manifest, rows = held_out_questions(state.datasets / name, limit)
        metrics = _metrics(manifest, metric)
        check_api_keys(metrics)
        perturbed = _perturbed(state.datasets, manifest, rows, robustness)
        asked = [*rows, *(perturbed.rows if perturbed else ())]
        # The first is what the others are compared with.
        models, place = list(dict.fromkeys([*(against or ()), model])), state.evaluations / name
        if offline:
            answers = _ask_offline(console, state, manifest, asked, models, place, few_shot=few_shot)
        else:
            endpoint = _Endpoint(url, api_key, concurrency)
            asking = _ask_models(console, endpoint, manifest, asked, models, place, len(rows), few_shot=few_shot)
            answers = asyncio.run(asking)
        held_out = [found.first(len(rows)) for found in answers]
        judge_answers(
            console, state, manifest, rows, held_out, metrics, url=url, api_key=api_key, concurrency=concurrency
        )
        report = make_report(manifest, rows, held_out, metrics, few_shot=few_shot, started_at=started_at)
        if perturbed:
            found = robustness_report(perturbed, rows, answers, without_judges(metrics)[0])
            report = report.model_copy(update={"robustness": found})
    except (DatasetError, EvaluationError, MetricError, ConfigError, AdapterError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    _write_report(console, report, state, name)


@eval_app.command()
def show(domain: Annotated[str, typer.Argument(help="Domain.")], home: HomeFolder = Path("var")) -> None:
    """Print the last report of a domain again."""
    from loadtest.evaluation.report import last_report

    report = last_report(Home(home).evaluations / domain / "reports")
    if report is None:
        print_error(f"No report of {domain!r} found. Run `lorikeet eval run {domain}`.")
        raise typer.Exit(1)
    print_report(make_console(), report)


@eval_app.command()
def compare(
    what: Annotated[list[str], typer.Argument(help="Domain, or reports of `eval run` (JSON) whose models to compare.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model of the domain, as medical@3 or 'medical@3 offline'; repeatable. Default: all."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric (docs/evaluation.md); repeatable. Default: those of the domain.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Model whose answers are the expected ones, instead of the data set's: how near the others come to it."
        ),
    ] = None,
    few_shot: Annotated[bool, typer.Option(help="Answers to few-shot prompts.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions; default: all.")] = None,
    home: HomeFolder = Path("var"),
) -> None:
    """Compare models by answers that earlier evaluations saved; nothing is asked."""
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.recording import beside_reference
    from loadtest.evaluation.report import make_report
    from loadtest.evaluation.saved import find_answers, selection_of
    from quality.metrics.judged import without_judges

    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        selected = selection_of(Home(home), what, model or (), limit, few_shot=few_shot)
        manifest = read_dataset(selected.folder)
        rows = read_split(selected.folder, "test")[: selected.num_rows]
        metrics = without_judges(_metrics(manifest, metric))
        answers = find_answers(Home(home), manifest, rows, selected)
        if reference is not None:
            named = replace(selected, models=((reference, None),))
            (expected,) = find_answers(Home(home), manifest, rows, named)
            rows, answers = beside_reference(rows, answers, expected)
        report = make_report(manifest, rows, answers, metrics, few_shot=selected.few_shot, started_at=started_at)
        report = report.model_copy(update={"reference": reference})
    except (DatasetError, EvaluationError, MetricError, ConfigError, AdapterError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    _write_report(make_console(), report, Home(home), manifest.domain)


def _write_report(console: "Console", report: "EvaluationReport", home: Home, name: str) -> None:
    """Save a report and its page, and print it."""
    from loadtest.evaluation.page import render_page
    from loadtest.evaluation.published import plots_of
    from loadtest.evaluation.report import save_report

    path = save_report(report, home.evaluations / name / "reports")
    page = path.with_suffix(".html")
    page.write_text(render_page(report, plots_of(report.models, home)), encoding="utf-8")
    print_report(console, report)
    console.print(f"report: {path}; page: {page}", markup=False)


def _ask_offline(
    console: "Console",
    home: Home,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    models: Sequence[str],
    place: Path,
    *,
    few_shot: bool,
) -> "list[Answers]":
    from loadtest.evaluation.offline import ask_offline, find_sources

    sources = find_sources(home, models)
    progress = Progress(f"{', '.join(source.name for source in sources)} offline on {manifest.domain}", unit="answers")
    with shown(progress, console):
        return ask_offline(
            manifest, rows, sources, place / manifest.dataset_sha256[:12],
            few_shot=few_shot, on_start=progress.begin, on_answers=progress.advance,
        )  # fmt: skip


@dataclass(frozen=True)
class _Endpoint:
    """A server to ask, and how many requests at a time."""

    url: str
    api_key: str
    concurrency: int


async def _ask_models(
    console: "Console",
    endpoint: _Endpoint,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    models: Sequence[str],
    place: Path,
    num_required: int,
    *,
    few_shot: bool,
) -> "list[Answers]":
    from openai import AsyncOpenAI

    from loadtest.evaluation.asking import ask_all

    found = []
    async with AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.api_key, max_retries=2, timeout=600) as client:
        for model in models:
            with shown(Progress(f"{model} on {manifest.domain}", len(rows), "answers"), console) as progress:
                found.append(
                    await ask_all(
                        client,
                        manifest,
                        rows,
                        await _reference(client, model),
                        place / manifest.dataset_sha256[:12],  # of the rows alone: other metrics ask nothing anew
                        few_shot=few_shot,
                        concurrency=endpoint.concurrency,
                        num_required=num_required,
                        on_answers=progress.advance,
                    )
                )
    return found


async def _reference(client: "AsyncOpenAI", model: str) -> str:
    from loadtest.evaluation.asking import BASE, base_model

    return await base_model(client) if model == BASE else model


def _perturbed(
    datasets: Path, manifest: DatasetManifest, rows: Sequence[DatasetRow], wanted: bool | None
) -> "PerturbedRows | None":
    """Perturbed copies, as the domain sets them; without settings, by the defaults where they are wanted."""
    from loadtest.evaluation.robustness import perturb_rows
    from quality.robustness.settings import RobustnessConfig

    settings = manifest.evaluation.robustness
    if wanted is False or (wanted is None and settings is None):
        return None
    return perturb_rows(datasets, manifest, rows, settings or RobustnessConfig())


def _metrics(manifest: DatasetManifest, wanted: Sequence[str] | None) -> "list[Metric]":
    """Those on the command line, else the domain's; without any, exact match and valid format."""
    from quality.metrics.figures import scored_once
    from quality.metrics.table import make_metrics
    from quality.scorers import AnswerFormat

    settings = manifest.evaluation.metrics or DEFAULT_METRICS
    if wanted:
        try:
            # With the domain's own settings, where it has this metric.
            own: dict[Any, MetricConfig] = {config.name: config for config in settings}
            texts = tuple(map(_from_yaml, wanted))
            settings = _METRICS.validate_python(
                tuple(own.get(text, text) if isinstance(text, str) else text for text in texts)
            )
        except ValidationError as error:
            known = error.errors()[0]
            number, *where = known["loc"]
            field = f"{where[-1]}: " if where[1:] else ""
            raise MetricError(
                f"--metric {wanted[int(number)]!r}: {field}{known['msg']} (docs/evaluation.md lists the metrics)."
            ) from None
    metrics = make_metrics(
        settings,
        folder=Path(),
        answer_format=AnswerFormat(manifest.answer.json_schema),
        refusal=manifest.answer.refusal,
    )
    return scored_once(metrics)


def _from_yaml(text: str) -> Any:
    """A metric's name, or the mapping that stands in braces, as in a domain's YAML.

    Raises:
        MetricError: The text in braces must be a mapping.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise MetricError(f"--metric {text!r} is not YAML: {problem}. Write '{{name: regex, pattern: ...}}'.") from None
    return settings


def print_report(console: "Console", report: "EvaluationReport") -> None:
    """Print figures and differences."""
    from loadtest.evaluation.page import judge_text, p_text, value_text
    from loadtest.evaluation.robustness_table import print_robustness

    first = report.models[0].served_by
    table = Table("metric", title=f"{report.domain}: {report.num_items} held-out questions")
    for model in report.models:
        table.add_column(model.served_by)
        if model is not report.models[0]:
            table.add_column(f"minus {first}")
    for number, metric in enumerate(report.models[0].metrics):
        cells = []
        for model in report.models:
            own = model.metrics[number]
            left_out = f", {own.num_left_out} left out" if own.num_left_out else ""
            cells.append(value_text(own.whole) + left_out)
            if own.difference is not None:
                cells.append(f"{value_text(own.difference)}, p {p_text(own.difference.p)}")
        table.add_row(metric.metric, *cells)
    console.print(table)
    if report.reference is not None:
        console.print(f"expected answers: those of {report.reference}", markup=False, highlight=False, soft_wrap=True)
    for own in report.models[0].metrics:
        if own.judge is not None:
            console.print(f"{own.metric}: {judge_text(own.judge)}", markup=False, highlight=False, soft_wrap=True)
    for model in report.models:
        for own in model.metrics:
            if own.left_out:
                console.print(f"{model.served_by}, {own.metric}: left out {own.left_out[0]}", markup=False)
    print_robustness(console, report)
