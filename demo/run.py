"""The demo's steps: prepare the base, build the data, train, serve, ask, evaluate, report."""

import asyncio
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from adapters.base import read_base
from adapters.errors import AdapterError
from adapters.manifest import Manifest
from adapters.store import AdapterStore
from config.dataset import read_dataset, read_split
from config.home import Home
from config.load import load_serve
from config.schema import DomainConfig
from demo.figures import DemoReport, DomainFigures, StepFigures, answer_figures, domain_figures, machine_name, utc_date
from demo.questions import Question, Reply, ask_together
from loadtest.evaluate import LiveScore, evaluate_live
from loadtest.progress import answers_progress
from loadtest.server import RunningServer, running_server

CONCURRENCY = 16
KINDS = ("base", "few_shot", "adapter")

Scores = dict[tuple[str, str], LiveScore]
"""By domain and kind."""


class StepFailedError(Exception):
    """A command of the demo ended with an error, which it has already shown."""


@dataclass
class Demo:
    """One run: its folders, its domains, and the seconds that its steps took."""

    home: Home
    domains: tuple[DomainConfig, ...]
    domain_files: tuple[Path, ...]
    serve_file: Path
    console: Console
    is_fresh: bool = False
    limit: int | None = None
    steps: list[StepFigures] = field(default_factory=list)

    @property
    def store(self) -> AdapterStore:
        return AdapterStore(self.home.adapters)


def run_demo(demo: Demo) -> DemoReport:
    """All steps, one after the other; what is there already is used again.

    Raises:
        StepFailedError: A command failed.
        ServerError: The server did not become ready.
        EvaluationError: The server did not answer.
    """
    start = time.perf_counter()
    _prepare(demo)
    for domain, file in zip(demo.domains, demo.domain_files, strict=True):
        _train(demo, domain, file)
    with ExitStack() as stack:
        with _step(demo, "start the server"):
            context = running_server(demo.serve_file, demo.home.root, demo.home.demo / "serve.log")
            server = stack.enter_context(context)
        replies, scores, parity = asyncio.run(_ask_and_evaluate(demo, server))
    return DemoReport(
        seconds=round(time.perf_counter() - start, 1),
        date=utc_date(),
        machine=machine_name(),
        base=demo.domains[0].base,
        concurrency=CONCURRENCY,
        engine_ready_s=round(server.ready_s, 1),
        steps=tuple(demo.steps),
        domains=tuple(_domain_figures(demo, domain, scores, parity) for domain in demo.domains),
        answers=tuple(answer_figures(reply) for reply in replies),
    )


def _prepare(demo: Demo) -> None:
    force = ["--force"] if demo.is_fresh else []
    with _step(demo, "prepare the base"):
        _lorikeet(demo, "base", "prepare", "smollm2-135m", "--quantization", "nf4", *force)
    with _step(demo, "build the data"):
        _lorikeet(demo, "data", "build", *map(str, demo.domain_files), *force)


def _train(demo: Demo, domain: DomainConfig, file: Path) -> None:
    current = None if demo.is_fresh else _current_version(demo, domain)
    if current is not None:
        demo.console.print(
            f"[green]{current.lora_name}[/green] was trained on this base and data by this recipe: used again"
        )
        return
    with _step(demo, f"train {domain.name}"):
        _lorikeet(demo, "train", str(file))


def _current_version(demo: Demo, domain: DomainConfig) -> Manifest | None:
    """The stable version, if it belongs to the base, the data and the recipe as they are now."""
    try:
        manifest = demo.store.manifest(demo.store.resolve(domain.name))
        base = read_base(demo.home.bases / domain.base)
    except AdapterError:
        return None
    dataset = read_dataset(demo.home.datasets / domain.name)
    is_current = (
        manifest.base.digest == base.digest
        and manifest.dataset is not None
        and manifest.dataset.dataset_sha256 == dataset.dataset_sha256
        and manifest.training is not None
        and manifest.training.arguments == domain.recipe.model_dump(mode="json")
    )
    return manifest if is_current else None


async def _ask_and_evaluate(demo: Demo, server: RunningServer) -> tuple[list[Reply], Scores, dict[str, float]]:
    base_name = load_serve(demo.serve_file).served_model_name
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        with _step(demo, "ask all at once"):
            replies = await ask_together(client, _questions(demo, base_name))
            _show_replies(demo, replies)
        scores: Scores = {}
        for domain in demo.domains:
            with _step(demo, f"evaluate {domain.name}"):
                for kind, model in zip(KINDS, (base_name, base_name, domain.name), strict=True):
                    scores[domain.name, kind] = await _evaluate(demo, client, domain, model, kind == "few_shot")
    return replies, scores, _parity_errors(server)


def _questions(demo: Demo, base_name: str) -> list[Question]:
    """One question a domain to its adapter, and the first one also to the base; every other one is streamed."""
    rows = [next(r for r in read_split(demo.home.datasets / d.name, "test") if r.in_scope) for d in demo.domains]
    pairs = [*zip((d.name for d in demo.domains), rows, strict=True), (base_name, rows[0])]
    return [Question(model, row, is_streamed=index % 2 == 0) for index, (model, row) in enumerate(pairs)]


async def _evaluate(demo: Demo, client: AsyncOpenAI, domain: DomainConfig, model: str, is_few_shot: bool) -> LiveScore:
    folder = demo.home.datasets / domain.name
    total = min(demo.limit or 10**9, read_dataset(folder).num_test)
    label = f"{model}{' with examples' if is_few_shot else ''} on {domain.name}"
    with answers_progress(label, total) as on_answer:
        return await evaluate_live(
            client,
            folder,
            model,
            few_shot=is_few_shot,
            limit=demo.limit,
            concurrency=CONCURRENCY,
            on_answer=on_answer,
        )


def _parity_errors(server: RunningServer) -> dict[str, float]:
    """Parity error by `name@version`, as the server exports it."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=30).text)
    return {
        f"{sample.labels['adapter']}@{sample.labels['version']}": sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lorikeet_adapter_parity_error_nats"
    }


def _show_replies(demo: Demo, replies: list[Reply]) -> None:
    for reply in replies:
        how = "streamed" if reply.question.is_streamed else "whole"
        demo.console.print(
            f"  [bold]{reply.served_by}[/bold] ({how}, {reply.started_s:.2f} to {reply.ended_s:.2f} s) "
            f"{reply.question.row.input[:60]!r} -> {reply.text!r}",
            highlight=False,
        )


def _domain_figures(demo: Demo, domain: DomainConfig, scores: Scores, parity: dict[str, float]) -> DomainFigures:
    base, few_shot, adapter = (scores[domain.name, kind] for kind in KINDS)
    target = demo.store.resolve(adapter.served_by)
    training = demo.store.manifest(target).training
    return domain_figures(
        domain.name, base, few_shot, adapter, parity.get(adapter.served_by), training.duration_s if training else None
    )


@contextmanager
def _step(demo: Demo, name: str) -> Iterator[None]:
    demo.console.rule(f"[bold]{name}", align="left")
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    demo.steps.append(StepFigures(name=name, seconds=round(seconds, 1)))
    demo.console.print(f"[dim]{name}: {seconds:.1f} s[/dim]")


def _lorikeet(demo: Demo, *words: str) -> None:
    """Run a command of ours as a user would, and show it."""
    demo.console.print(f"[cyan]$ lorikeet {shlex.join(words)}[/cyan]", highlight=False)
    command = [sys.executable, "-P", "-m", "lorikeet", *words, "--home", str(demo.home.root)]
    if subprocess.run(command, check=False).returncode != 0:
        raise StepFailedError(f"`lorikeet {shlex.join(words)}` failed; its message is above.")
