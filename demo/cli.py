"""`lorikeet demo`: the whole loop, from an empty state folder to a report."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from config.home import Home
from config.packaged import default_file
from config.progress import span
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import make_console, print_error

DOMAINS = ("medical", "finance", "legal")


def demo(
    fresh: Annotated[bool, typer.Option(help="Start over: prepare, build and train again, as new versions.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of evaluation examples per domain.")] = None,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality", help="Show a bad canary being rolled back and a good one promoted; requires an earlier demo."
        ),
    ] = False,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Serve the base, train and swap in three adapters, then query and measure; reuses existing results."""
    console = make_console()
    try:
        with interrupted_by_sigterm():
            _quality(Home(home), console) if quality else _demo(Home(home), console, fresh, limit)
    except KeyboardInterrupt as interrupt:
        console.print("\ninterrupted; run the command again without --fresh to resume")
        raise typer.Exit(exit_code_of(interrupt)) from None


def _demo(home: Home, console: Console, is_fresh: bool, limit: int | None) -> None:
    start_s = time.monotonic()  # imports count

    from adapters.errors import AdapterError
    from config.errors import ConfigError, DatasetError
    from config.load import load_domain
    from demo.commands import StepFailedError
    from demo.report import print_report, write_report
    from demo.run import Demo, run_demo
    from demo.timeline import Timeline
    from loadtest.bench.server import ServerError
    from loadtest.evaluate import EvaluationError

    files, serve_file = tuple(default_file(f"domains/{name}.yaml") for name in DOMAINS), default_file("serve.yaml")
    console.print(f"Configuration: {', '.join(map(str, (*files, serve_file)))}", highlight=False, soft_wrap=True)
    try:
        domains, timeline = tuple(load_domain(file) for file in files), Timeline(console, start_s)
        report = run_demo(Demo(home, domains, files, serve_file, console, timeline, is_fresh, limit))
    except (AdapterError, ConfigError, DatasetError, StepFailedError, ServerError, EvaluationError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    json_file, html_file = write_report(report, home.demo)
    print_report(report, console)
    console.print(
        f"First answer of an adapter after {span(report.first_adapter_answer_s)}, total time "
        f"{span(report.seconds)}. Figures: {json_file}, plots: {html_file}\n\n"
        "Next, `make serve` or `lorikeet serve`, and in a second terminal:\n"
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d "
        """'{"model": "medical", "messages": [{"role": "user", "content": "Tuberculous pneumonia"}]}'""",
        highlight=False,
        soft_wrap=True,
    )


def _quality(home: Home, console: Console) -> None:
    """Run only the canary demo."""
    import httpx

    from adapters.errors import AdapterError
    from config.errors import ConfigError, DatasetError
    from demo.quality import print_quality_report, run_quality_demo
    from demo.trial import NoVerdictError
    from loadtest.bench.server import ServerError

    try:
        report = run_quality_demo(home, default_file("serve.yaml"), console)
    except (AdapterError, ConfigError, DatasetError, ServerError, NoVerdictError, httpx.HTTPError) as error:
        hint = " Run `lorikeet demo` first." if isinstance(error, (AdapterError, DatasetError)) else ""
        print_error(f"{error}{hint}")
        raise typer.Exit(1) from None
    print_quality_report(report, console)
    console.print(f"Figures: {home.demo / 'quality' / 'report.json'}. The store in {home.adapters} is unchanged.")
