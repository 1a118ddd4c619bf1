"""`lorikeet eval decide` from its settings to its report."""

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from openai import APIError, AsyncOpenAI
from rich.console import Console

from adapters.bases import read_base
from adapters.errors import AdapterNotFoundError
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.dataset import DatasetManifest, DatasetRow, read_dataset, read_split
from config.domain import DomainConfig
from config.errors import DatasetError
from config.home import Home
from config.progress import Progress, print_line, shown
from loadtest.evaluation.asking import base_model
from loadtest.evaluation.decide.curve import (
    CurveSettings,
    TrainedPart,
    TrainPart,
    train_part,
    trained_parts,
    why_no_curve,
    why_other,
)
from loadtest.evaluation.decide.endpoint import ServerChoice, asked_server, check_reachable
from loadtest.evaluation.decide.report import (
    DISTURBED,
    AdviceReport,
    DecisionInputs,
    DecisionReport,
    WayReport,
    advise,
    curve_report,
    disturbed,
    way_reports,
)
from loadtest.evaluation.decide.retrieval import Embed, Neighbours, nearest, read_passages
from loadtest.evaluation.decide.timed import TimedAnswer, ask_timed, identify
from loadtest.evaluation.decide.ways import NUM_PASSAGES, Context, PromptParts, Way, fixed_examples, ways
from loadtest.load.session import machine
from quality.embedding import embed, missing_packages
from quality.metrics.item import Metric
from quality.metrics.settings import DEFAULT_METRICS, JudgeSettings, PlainMetric
from quality.metrics.table import make_metrics
from quality.scorers import AnswerFormat

_DEFAULT_EXAMPLES = 5


@dataclass(frozen=True)
class DecideOptions:
    """Settings of one run.

    Attributes:
        adapter: Model reference; None: the domain's stable version, if there is one.
        num_examples: In prompts; None: the domain's `evaluation.num_few_shot`.
    """

    home: Home
    config: DomainConfig
    serve_file: Path
    url: str | None = None
    adapter: str | None = None
    num_examples: int | None = None
    limit: int | None = 100
    concurrency: int = 8
    price_per_hour: float | None = None
    has_curve: bool = True
    api_key: str = "none"


@dataclass
class _Run:
    """One run and what a person should know of it."""

    options: DecideOptions
    dataset: DatasetManifest
    rows: list[DatasetRow]
    train: list[DatasetRow]
    console: Console
    embed: Embed | None
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.options.home.evaluations / self.dataset.domain / "decide"

    @property
    def saved(self) -> Path:
        return self.folder / self.dataset.dataset_sha256[:12]

    @property
    def num_examples(self) -> int:
        wanted = self.options.num_examples
        if wanted is None:
            wanted = self.dataset.evaluation.num_few_shot or _DEFAULT_EXAMPLES
        return min(wanted, len(self.train))

    def say(self, line: str) -> None:
        print_line(self.console, f"{self.dataset.domain}: {line}")


def packaged_embed() -> Embed | None:
    """MiniLM; None: the extra is not installed."""
    return None if missing_packages() else embed


def decide(
    options: DecideOptions, console: Console, *, embed: Embed | None, train: TrainPart = train_part
) -> DecisionReport:
    """Ask every way, train parts of the rows, and recommend.

    Args:
        embed: Vectors of texts for retrieval; None: nothing is retrieved.

    Raises:
        DatasetError: The data set is missing, or has no questions with answers.
        EvaluationError: A request failed.
        ConfigError: Documents or the server's configuration cannot be read.
        AdapterError: A named adapter does not exist, or the base is not prepared.
        MetricError: The deciding metric lacks what it needs.
        TargetError: A temporary server or a training failed.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    run = _begin(options, console, embed)
    metrics, adapter = _metrics(run), _version(options)
    if adapter is None:
        _note_versions(run, AdapterStore(options.home.adapters))
    base = adapter.base.name if adapter else options.config.base
    if options.url is not None:
        check_reachable(options.url)
    else:
        read_base(options.home.bases / base)  # before a server takes a minute to say that it is missing
    passages = read_passages(options.config.documents)
    named = adapter.lora_name if adapter else options.adapter
    choice = ServerChoice(options.url, options.home, options.serve_file, base, named, options.api_key)
    with ThreadPoolExecutor(1) as pool:  # a temporary server starts meanwhile
        parts = pool.submit(_prompt_parts, run, passages)
        with asked_server(choice, run.say) as url:
            asked = asyncio.run(_ask(run, url, named, parts.result()))
    curve = _curve(run, adapter, metrics[0], train)
    return _report(run, started_at, base, asked, curve, metrics)


def _report(
    run: _Run,
    started_at: str,
    base: str,
    asked: "_AskedWays",
    parts: Sequence[TrainedPart],
    metrics: tuple[Metric, Metric],
) -> DecisionReport:
    options, metric = run.options, metrics[0]
    inputs = DecisionInputs(
        run.rows, asked.answers, parts, *metrics, run.num_examples, options.concurrency, options.price_per_hour
    )
    reports, curve = way_reports(inputs), curve_report(parts, metric)
    advice = advise(inputs, reports, curve)
    _note_cut(run, reports)
    _note_disturbed(run, reports)
    return DecisionReport(
        domain=run.dataset.domain, dataset=run.dataset.version, started_at=started_at, machine=machine(),
        metric=metric.name, higher_is_better=metric.higher_is_better, num_items=len(run.rows),
        num_train=run.dataset.num_train, concurrency=options.concurrency, price_per_hour=options.price_per_hour,
        base=base, adapter=asked.adapter, ways=tuple(reports), curve=curve,
        advice=AdviceReport(**vars(advice)), notes=tuple(run.notes),
    )  # fmt: skip


def _begin(options: DecideOptions, console: Console, embed: Embed | None) -> _Run:
    name = options.config.name
    folder = options.home.datasets / name
    dataset = read_dataset(folder)
    if dataset.type != "prompt_completion":
        raise DatasetError(
            f"Data set {name!r} must have questions with answers; its rows are of type {dataset.type!r}."
        )
    rows = read_split(folder, "test")[: options.limit]
    if not rows:
        raise DatasetError(f"Data set {name!r} has no held-out questions. Set `data.num_test`, and build it.")
    return _Run(options, dataset, rows, read_split(folder, "train"), console, embed)


def _metrics(run: _Run) -> tuple[Metric, Metric]:
    """The domain's first that no judge gives, which decides, and valid format."""
    answer, given = run.dataset.answer, run.dataset.evaluation.metrics
    unjudged = [metric for metric in given if not isinstance(metric, JudgeSettings)]
    first = (unjudged or DEFAULT_METRICS)[0]
    if given and first != given[0]:
        run.notes.append(f"No judge is asked here: {first.name} decides.")
    deciding, valid = make_metrics(
        (first, PlainMetric(name="valid_format")),
        folder=Path(),
        answer_format=AnswerFormat(answer.json_schema),
        refusal=answer.refusal,
    )
    return deciding, valid


def _version(options: DecideOptions) -> Manifest | None:
    """The adapter in the store; None if it does not exist or only the server of `--url` has it."""
    store = AdapterStore(options.home.adapters)
    try:
        return store.manifest(store.resolve(options.adapter or options.config.name))
    except AdapterNotFoundError:
        if options.adapter is not None and options.url is None:
            raise
        return None


def _note_versions(run: _Run, store: AdapterStore) -> None:
    """Where no version is stable."""
    name = run.dataset.domain
    if store.root.is_dir() and (versions := store.versions(name)):
        run.notes.append(f"No version of {name!r} is stable. To compare one: `--adapter {name}@{versions[-1]}`.")


def _prompt_parts(run: _Run, passages: Sequence[str]) -> PromptParts:
    k = run.num_examples
    wanted = run.options.num_examples
    if wanted is not None and wanted > k:
        run.notes.append(f"{wanted} examples are wanted, but there are {len(run.train)} training rows: all are used.")
    examples = fixed_examples(run.dataset, run.train, k)
    if run.embed is None:
        run.notes.append(
            "Nearest examples and passages were left out: they need an extra (`pip install 'lorikeet[embeddings]'`)."
        )
        return PromptParts(run.dataset, run.rows, examples)
    near = _neighbours(run, run.embed, [row.input for row in run.train], k, "examples")
    if near.num_copies:
        run.notes.append(f"{near.num_copies} training rows equal the question that they are nearest to: passed over.")
    found = _neighbours(run, run.embed, passages, NUM_PASSAGES, "passages")
    return PromptParts(
        run.dataset,
        run.rows,
        examples,
        [[run.train[place] for place in places] for places in near.places] if k else (),
        [[passages[place] for place in places] for places in found.places] if passages else (),
    )


def _neighbours(run: _Run, embed: Embed, corpus: Sequence[str], k: int, kind: str) -> Neighbours:
    questions = [row.input for row in run.rows]
    if not corpus or not k:
        return Neighbours(((),) * len(questions), 0)
    with shown(Progress(f"{run.dataset.domain}: find nearest {kind}"), run.console):
        return nearest(corpus, questions, k, embed, run.saved / f"nearest-{kind}.json")


def _contexts(parts: PromptParts) -> Collection[Context]:
    found: dict[Context, object] = {"examples": parts.examples, "nearest": parts.nearest, "documents": parts.passages}
    return [name for name, content in found.items() if content]


@dataclass(frozen=True)
class _AskedWays:
    adapter: str | None
    answers: dict[Way, list[TimedAnswer]]


async def _ask(run: _Run, url: str, adapter: str | None, parts: PromptParts) -> _AskedWays:
    options, dataset = run.options, run.dataset
    is_always_constrained = dataset.defaults.response_format is not None
    if is_always_constrained:
        run.notes.append("The domain's `defaults.response_format` constrains every answer.")
    can_constrain = dataset.answer.json_schema is not None and not is_always_constrained
    async with AsyncOpenAI(base_url=url, api_key=options.api_key, max_retries=2, timeout=600) as client:
        if adapter is None and options.url is not None:
            adapter = await _served_version(client, dataset.domain)
        base = await identify(client, await base_model(client))
        tuned = await identify(client, adapter) if adapter is not None else None
        found = {}
        for way in ways(_contexts(parts), has_adapter=tuned is not None, can_constrain=can_constrain):
            model = tuned if way.is_adapter and tuned is not None else base
            questions = [parts.requests(way, number, model.model, model.filled) for number in range(len(run.rows))]
            title = f"{dataset.domain}: {way.name(run.num_examples)}"
            with shown(Progress(title, len(run.rows), "answers"), run.console) as progress:
                found[way] = await ask_timed(
                    client,
                    model,
                    questions,
                    run.saved,
                    concurrency=options.concurrency,
                    on_answers=progress.advance,
                )
    return _AskedWays(adapter, found)


async def _served_version(client: AsyncOpenAI, name: str) -> str | None:
    """The version that a server has under a name, which this store does not; None: it does not know the name."""
    try:
        card = await client.models.retrieve(name)
    except APIError:
        return None
    root = str((card.model_extra or {}).get("root"))
    return root if root.startswith(f"{name}@") else name


def _curve(run: _Run, adapter: Manifest | None, metric: Metric, train: TrainPart) -> tuple[TrainedPart, ...]:
    options = run.options
    if not options.has_curve:
        return ()
    settings = CurveSettings(options.config, run.dataset, options.home, metric.name)
    if reason := why_no_curve(settings):
        run.notes.append(f"No learning curve: {reason}.")
        return ()
    if adapter is not None and (other := why_other(settings, adapter)):
        run.notes.append(f"{adapter.lora_name} {other}: for the learning curve, all rows are trained on, too.")
    return trained_parts(settings, adapter, run.say, train)


def _note_cut(run: _Run, reports: Sequence[WayReport]) -> None:
    for report in reports:
        if report.num_cut:
            run.notes.append(
                f"{report.name}: {report.num_cut} prompts had fewer examples or passages, to fit the context."
            )


def _note_disturbed(run: _Run, reports: Sequence[WayReport]) -> None:
    if names := disturbed(reports, min(run.options.concurrency, len(run.rows))):
        run.notes.append(
            f"The mean time of an answer is over {DISTURBED:g} times the median of {', '.join(names)}: something else "
            f"ran, so costs are too high. To measure again, delete {run.saved}."
        )
