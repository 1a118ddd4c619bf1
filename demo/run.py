"""The demo: start a server, then train adapters one after the other and swap them in while it runs."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from openai import APIError, AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from adapters.store.store import AdapterStore
from config.dataset import read_split
from config.domain import DomainConfig
from config.home import Home
from config.load import load_serve
from config.progress import LINE_EVERY_S, Progress, lines_every, print_line, shown, span
from demo.asking import CONCURRENCY, DomainScores, Examiner
from demo.commands import StepFailedError, run_lorikeet
from demo.evaluated import figures_of
from demo.figures import (
    DemoReport,
    DomainFigures,
    MeanwhileFigures,
    SwapFigures,
    answer_figures,
    domain_figures,
    machine_name,
    utc_date,
)
from demo.meanwhile import asked_meanwhile
from demo.questions import DemoReply, Question, ask_together
from demo.saved import SavedScores
from demo.timeline import Timeline
from demo.training import TrainedDomain, replaced_versions, start_over, trained
from loadtest.bench.server import StartingServer, starting_server

BASE_SOURCE, BASE_QUANTIZATION = "smollm2-135m", "nf4"
START_HINT = "the first start compiles the model, for two or three minutes"


@dataclass
class Demo:
    """One run: its folders, domains and results so far."""

    home: Home
    domains: tuple[DomainConfig, ...]
    domain_files: tuple[Path, ...]
    serve_file: Path
    console: Console
    timeline: Timeline
    is_fresh: bool = False
    limit: int | None = None
    scores: dict[str, DomainScores] = field(default_factory=dict)
    swaps: list[SwapFigures] = field(default_factory=list)
    meanwhile: list[MeanwhileFigures] = field(default_factory=list)

    @property
    def base_name(self) -> str:
        return load_serve(self.serve_file).served_model_name

    @property
    def saved(self) -> SavedScores:
        return SavedScores(self.home.demo / "unfinished")

    @property
    def fresh_marker(self) -> Path:
        """Beside the scores, so that it is forgotten with them."""
        return self.home.demo / "unfinished" / "fresh.json"

    def question(self, domain: DomainConfig, model: str, *, is_streamed: bool = True) -> Question:
        """The domain's first held-out question that is in its scope."""
        rows = read_split(self.home.datasets / domain.name, "test")
        return Question(model, next(row for row in rows if row.in_scope), is_streamed)

    def say(self, line: str) -> None:
        print_line(self.console, line)


def run_demo(demo: Demo) -> DemoReport:
    """Run all steps, reusing existing results.

    Raises:
        StepFailedError: A command failed.
        ServerError: The server did not become ready.
        EvaluationError: The server did not answer.
    """
    if demo.is_fresh:
        demo.saved.forget()
        start_over(demo.home, [domain.name for domain in demo.domains], demo.fresh_marker)
    force = ["--force"] if demo.is_fresh else []
    run = partial(run_lorikeet, home=demo.home.root, console=demo.console)
    with demo.timeline.step("prepare the base", "prepare"):
        run("base", "prepare", BASE_SOURCE, "--quantization", BASE_QUANTIZATION, *force)
    server_start_s = demo.timeline.now_s
    with ExitStack() as stack:
        server = stack.enter_context(starting_server(demo.serve_file, demo.home.root, demo.home.demo / "serve.log"))
        published = AdapterStore(demo.home.adapters).names()
        demo.say(f"The server starts with the base and {len(published)} adapters; its log: {server.log_file}")
        stack.enter_context(_start_told(demo, server))
        with demo.timeline.step("build the data", "prepare"):
            run("data", "build", *map(str, demo.domain_files), *force, check=server.check)
        for domain, file in zip(demo.domains, demo.domain_files, strict=True):
            _train_and_swap_in(demo, server, domain, file)
        replies = asyncio.run(_ask_all_at_once(demo, server))
        parity = parity_errors(server.url)
        ready_s = server.wait_until_ready().ready_s
    demo.timeline.add("start the server", "server", server_start_s, ready_s)
    demo.saved.forget()
    return _report(demo, ready_s, replies, parity)


def _train_and_swap_in(demo: Demo, server: StartingServer, domain: DomainConfig, file: Path) -> None:
    """Train one adapter while the server serves the earlier ones, then query the new one."""

    def run(*words: str) -> None:
        questions = [
            demo.question(domain, demo.base_name),
            *(demo.question(one, one.name) for one in demo.domains[:done]),
        ]
        with (
            demo.timeline.step(f"train {domain.name}", "train"),
            asked_meanwhile(
                server.url, questions, lambda: server.running is not None, lambda: demo.timeline.now_s, demo.meanwhile
            ),
        ):
            run_lorikeet(*words, home=demo.home.root, console=demo.console, check=server.check)

    done = demo.domains.index(domain)
    replaced = replaced_versions(demo.fresh_marker).get(domain.name, 0)
    version = trained(demo.home, domain, file, replaced, run)
    if not version.is_trained_here:
        demo.say(f"{version.manifest.lora_name} was trained on this base and data with this recipe: reused")
    asyncio.run(_swap_in(demo, server, domain, version))


async def _swap_in(demo: Demo, server: StartingServer, domain: DomainConfig, version: TrainedDomain) -> None:
    published_s = demo.timeline.now_s
    _wait_until_ready(demo, server)
    async with _client(server) as client:
        with demo.timeline.step(f"first answer of {domain.name}", "answer"):
            (reply,) = await _answers(client, [demo.question(domain, domain.name)])
            answer_s = demo.timeline.now_s
            _show_reply(demo, reply)
        demo.swaps.append(
            SwapFigures(
                adapter=domain.name,
                served_by=reply.served_by,
                is_trained_here=version.is_trained_here,
                published_s=round(published_s, 1),
                answer_s=round(answer_s, 1),
                input=reply.question.row.input,
                answer=reply.text,
            )
        )
        if len(demo.swaps) == 1:
            demo.say(f"first answer of an adapter: {span(answer_s)} after the start of the demo")
        with demo.timeline.step(f"evaluate {domain.name}", "evaluate"):
            examiner = Examiner(client, demo.console, demo.saved, demo.limit)
            scores = await examiner.examine(demo.home.datasets / domain.name, version.manifest, demo.base_name)
    demo.scores[domain.name] = scores
    demo.say(
        f"{domain.name}: exact match {scores.base.accuracy.value:.1%} of the base, "
        f"{scores.few_shot.accuracy.value:.1%} with examples, {scores.adapter.accuracy.value:.1%} of the adapter"
    )


async def _ask_all_at_once(demo: Demo, server: StartingServer) -> list[DemoReply]:
    """One question a domain to its adapter, and the first one also to the base; every other one is streamed."""
    asked = [(domain, domain.name) for domain in demo.domains] + [(demo.domains[0], demo.base_name)]
    questions = [demo.question(*pair, is_streamed=index % 2 == 0) for index, pair in enumerate(asked)]
    async with _client(server) as client:
        with demo.timeline.step("ask all at once", "answer"):
            replies = await _answers(client, questions)
            for reply in replies:
                _show_reply(demo, reply)
    return replies


async def _answers(client: AsyncOpenAI, questions: list[Question]) -> list[DemoReply]:
    try:
        return await ask_together(client, questions)
    except APIError as error:
        raise StepFailedError(f"The server did not answer {questions[0].model!r}: {error.message}") from error


def _client(server: StartingServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)


@contextmanager
def _start_told(demo: Demo, server: StartingServer) -> Iterator[None]:
    """In a log file, report the server's start-up progress meanwhile; a terminal shows the other task's bar."""
    started_s, is_told = demo.timeline.now_s, False

    def line() -> str:
        nonlocal is_told
        running, was_told = server.running, is_told
        is_told = running is not None
        if running is None:
            return f"start the server: {span(demo.timeline.now_s - started_s)}, {START_HINT}"
        return "" if was_told else f"The server is ready after {span(running.ready_s)}"

    with nullcontext() if demo.console.is_terminal else lines_every(LINE_EVERY_S, line, demo.console):
        yield


def _wait_until_ready(demo: Demo, server: StartingServer) -> None:
    if server.running is None and demo.console.is_terminal:
        with shown(Progress("start the server", hint=START_HINT), demo.console):
            server.wait_until_ready()
    server.wait_until_ready()


def parity_errors(url: str) -> dict[str, float]:
    """Parity error by `name@version` from the server's metrics; empty if it exports none."""
    try:
        response = httpx.get(f"{url}/metrics", timeout=30).raise_for_status()
    except httpx.HTTPError:
        return {}
    families = text_string_to_metric_families(response.text)
    return {
        f"{sample.labels['adapter']}@{sample.labels['version']}": sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lorikeet_adapter_parity_error_nats"
    }


def _show_reply(demo: Demo, reply: DemoReply) -> None:
    how = "streamed" if reply.question.is_streamed else "whole"
    demo.say(
        f"  {reply.served_by} ({how}, {reply.started_s:.2f} to {reply.ended_s:.2f} s) "
        f"{reply.question.row.input[:60]!r} -> {reply.text!r}"
    )


def _report(demo: Demo, ready_s: float, replies: list[DemoReply], parity: dict[str, float]) -> DemoReport:
    return DemoReport(
        seconds=round(demo.timeline.now_s, 1),
        first_adapter_answer_s=demo.swaps[0].answer_s,
        date=utc_date(),
        machine=machine_name(),
        base=demo.domains[0].base,
        concurrency=CONCURRENCY,
        engine_ready_s=round(ready_s, 1),
        steps=tuple(sorted(demo.timeline.steps, key=lambda step: step.start_s)),
        domains=tuple(_domain_figures(demo, domain.name, parity) for domain in demo.domains),
        answers=tuple(answer_figures(reply) for reply in replies),
        swaps=tuple(demo.swaps),
        meanwhile=tuple(demo.meanwhile),
    )


def _domain_figures(demo: Demo, name: str, parity: dict[str, float]) -> DomainFigures:
    scores, store = demo.scores[name], AdapterStore(demo.home.adapters)
    manifest = store.manifest(store.resolve(scores.adapter.served_by))
    seconds = manifest.training.duration_s if manifest.training else None
    return domain_figures(name, scores, parity.get(scores.adapter.served_by), seconds, figures_of(manifest))
