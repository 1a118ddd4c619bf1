"""`lorikeet bench NAME`: the project's benchmarks, one function each."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdapterError
from config.errors import ConfigError
from config.home import Home
from config.packaged import default_file
from config.terminal import make_console, print_error
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchReport, BenchResult, results_table
from loadtest.errors import LoadtestError

Bench = Callable[[BenchOptions], tuple[BenchResult, ...]]

BENCHES = {
    "adapters": "loadtest.bench.adapters:bench_adapters",
    "agreement": "loadtest.bench.agreement:bench_agreement",
    "cluster": "loadtest.bench.cluster:bench_cluster",
    "coldload": "loadtest.bench.coldload:bench_coldload",
    "data": "loadtest.bench.data:bench_data",
    "generator": "loadtest.bench.generator:bench_generator",
    "int8": "loadtest.bench.int8:bench_int8",
    "jobs": "loadtest.bench.jobs:bench_jobs",
    "linear": "loadtest.bench.linear:bench_linear",
    "lora": "loadtest.bench.lora:bench_lora",
    "manyadapters": "loadtest.bench.manyadapters:bench_manyadapters",
    "methods": "loadtest.bench.methods:bench_methods",
    "overhead": "loadtest.bench.overhead:bench_overhead",
    "quality": "loadtest.bench.quality:bench_quality",
    "train": "loadtest.bench.train:bench_train",
}
"""By name, module and function: what a benchmark imports is paid by those who run it."""

_ROUNDS = {"coldload": 9, "lora": 9, "manyadapters": 9, "quality": 9}
_FEW_ROUNDS = 3


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Endpoint of a running server (ending with /v1), instead of a temporary server.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="With --url: the base, then adapters.")] = None,
    adapter: Annotated[str, typer.Option(help="Without --url: the adapter to copy.")] = "medical",
    rounds: Annotated[
        int | None, typer.Option(min=1, help=f"Pairs to measure: {_FEW_ROUNDS}, or 9 for {', '.join(_ROUNDS)}.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="manyadapters: the long run [default: 20].")] = None,
    stock: Annotated[
        bool, typer.Option("--stock", help="overhead: run vLLM's server without this project's vLLM plugin.")
    ] = False,
    serve_file: Annotated[
        Path | None,
        typer.Option(
            "--serve", help="Configuration of the temporary server; default: config/serve.yaml, or the packaged one."
        ),
    ] = None,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Run a benchmark: ratios to a baseline of the same run. Exit code 1 if a target is missed."""
    from loadtest.bench.server import ServerError
    from loadtest.load.files import replace_text
    from loadtest.load.session import machine

    console, started = make_console(), datetime.now(UTC)
    if name not in BENCHES:
        raise typer.BadParameter(f"{name!r} is not a benchmark; known: {', '.join(BENCHES)}.", param_hint="NAME")
    if stock and name != "overhead":
        raise typer.BadParameter(f"Only `overhead` supports this option, not {name!r}.", param_hint="--stock")
    if minutes is not None and name != "manyadapters":
        raise typer.BadParameter(f"Only `manyadapters` supports this option, not {name!r}.", param_hint="--minutes")
    options = BenchOptions(
        Home(home),
        serve_file or default_file("serve.yaml"),
        url,
        tuple(model or ()),
        adapter,
        rounds or _ROUNDS.get(name, _FEW_ROUNDS),
        is_stock=stock,
        minutes=minutes or 20.0,
        environment=dict(os.environ),
        say=lambda line: console.print(line, highlight=False),
    )
    try:
        results = _function(name)(options)
    except (AdapterError, ConfigError, LoadtestError, ServerError) as error:
        print_error(error)
        raise typer.Exit(2) from None
    at = started.isoformat(timespec="seconds")
    report = BenchReport(bench=name, machine=machine(), started_at=at, results=results)
    console.print(results_table(report))
    if json_file:
        replace_text(json_file, report.to_json())
    if not report.is_pass:
        raise typer.Exit(1)


def _function(name: str) -> Bench:
    module, _, function = BENCHES[name].partition(":")
    found: Bench = getattr(import_module(module), function)
    return found
