"""`lorikeet loadtest run`: send a load, show progress, save the measurements, and check the SLO."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adapters.errors import AdapterError
from config.errors import ConfigError, DatasetError
from config.home import Home
from config.load import read_mapping, trace_from
from config.loadtest import LoadtestConfig
from config.terminal import labelled, make_console, print_error
from loadtest.errors import LoadtestError
from loadtest.load.options import RunOptions, with_options

if TYPE_CHECKING:
    from loadtest.load.records import RunResult
    from loadtest.report.slo import Slo

ConfigFile = Annotated[Path | None, typer.Argument(help="Load test configuration (YAML), e.g. config/loadtest.yaml.")]
Url = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, including /v1.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Model reference; may be repeated.")]
MaxTokens = Annotated[int | None, typer.Option(help="Output tokens per answer.")]
PromptWords = Annotated[int | None, typer.Option(help="Length of random prompts, words.")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="API key, if the server requires one.")]
HomeFolder = Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")]

app = typer.Typer(no_args_is_help=True, help="Load over HTTP: run, compare, capacity, cliff.")


@app.command()
def run(
    config_file: ConfigFile = None,
    url: Url = None,
    model: Models = None,
    mix: Annotated[
        str | None, typer.Option(help="zipf[:S], uniform, weights:3,1, hot-set:SIZE[,SHARE[,ROTATE_AFTER]], one-shot.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model's served name.")] = None,
    base_share: Annotated[float | None, typer.Option(help="Share of requests for the base model.")] = None,
    arrival: Annotated[str | None, typer.Option(help="poisson, gamma, constant, step, ramp, trace or closed.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second; for a ramp, the initial rate.")] = None,
    rate_to: Annotated[float | None, typer.Option(help="Final rate of a ramp, requests per second.")] = None,
    burstiness: Annotated[float | None, typer.Option(help="Shape of gamma gaps: 1 is Poisson, below 1 bursty.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop with this number of users.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay a CSV or JSONL trace.")] = None,
    duration: Annotated[float | None, typer.Option(help="Sending time, seconds.")] = None,
    num_requests: Annotated[int | None, typer.Option(help="Most requests.")] = None,
    prompt_words: PromptWords = None,
    dataset: Annotated[
        str | None, typer.Option(help="Prompts of this built data set; `own`: each adapter's own data set.")
    ] = None,
    max_tokens: MaxTokens = None,
    slo: Annotated[str | None, typer.Option(help="e.g. ttft=500ms,itl=100ms; exit code 1 if it is missed.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Output folder, whose name is the run's; default: under the state folder.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed: the same seed gives the same requests and times.")
    ] = None,
    api_key: ApiKey = None,
    home: HomeFolder = Path("var"),
) -> None:
    """Send a load to an OpenAI-compatible server and report latencies, throughput and errors per model."""
    options = RunOptions(
        url=url,
        duration_s=duration,
        num_requests=num_requests,
        seed=seed,
        arrival=arrival,
        rate=rate,
        rate_to=rate_to,
        burstiness=burstiness,
        concurrency=concurrency,
        trace=trace and trace.absolute(),
        models=tuple(model or ()),
        mix=mix,
        base=base,
        base_share=base_share,
        dataset=dataset,
        prompt_words=prompt_words,
        max_tokens=max_tokens,
    )
    folder = output or Home(home).loadtests / now_text()
    with errors_shown():
        config = read_config(config_file, options)
        is_met = _run_and_report(config, Home(home), folder, slo, api_key)
    if not is_met:
        raise typer.Exit(1)


def read_config(config_file: Path | None, options: RunOptions) -> LoadtestConfig:
    """The load test of the file, overridden by the options; without a file, defaults and options.

    Raises:
        ConfigError: The file cannot be read, or the combination is invalid.
    """
    if config_file is None:
        return with_options({}, options, "load test")
    config = with_options(read_mapping(config_file), options, str(config_file))
    return trace_from(config_file.parent, config)


def _run_and_report(
    config: LoadtestConfig, home: Home, folder: Path, slo_text: str | None, api_key: str | None
) -> bool:
    """Send the load and save the measurements; returns whether the SLO, if any, was met."""
    from loadtest.load.files import write_run
    from loadtest.load.live import live_view
    from loadtest.load.session import run_load
    from loadtest.report.slo import parse_slo

    console, slo = make_console(), parse_slo(slo_text) if slo_text else None
    result = run_load(
        config,
        home.datasets,
        name=folder.name,
        api_key=api_key,
        watch=lambda progress: live_view(config, progress, console),
    )
    run_file = write_run(result, folder)
    return _report(result, slo, run_file, console)


def _report(result: "RunResult", slo: "Slo | None", run_file: Path, console: Console) -> bool:
    """Write the reports beside the run and print them; returns whether the SLO was met."""
    from loadtest.report.figures import make_report
    from loadtest.report.report import summary_table, verdict_lines, write_reports

    report, paths = make_report(result, slo), write_reports(result, slo, run_file.parent)
    console.print(summary_table(report))
    for line in verdict_lines(report.slo) if report.slo else ():
        console.print(line, highlight=False)
    for warning in result.warnings:
        console.print(labelled("warning:", "yellow", warning))
    console.print(f"{run_file}, {paths.html_file.name}, {paths.markdown_file.name}", highlight=False)
    return report.slo is None or report.slo.is_met


@contextmanager
def errors_shown() -> Iterator[None]:
    """Print errors that a user can fix without a traceback, and exit with code 2."""
    from loadtest.bench.server import ServerError

    try:
        yield
    except (AdapterError, ConfigError, DatasetError, LoadtestError, ServerError) as error:
        print_error(error)
        raise typer.Exit(2) from None


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
