"""`lorikeet demo`: the whole loop, from nothing to a report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from config.home import Home
from config.packaged import default_file

DOMAINS = ("medical", "finance", "legal")


def demo(
    fresh: Annotated[bool, typer.Option(help="Prepare, build and train again, as new versions.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only so many examples a domain.")] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Show a bad canary go and a good one stay; needs an earlier demo.")
    ] = False,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Base, data, three adapters, one server, questions, answers and figures; reuses what is there."""
    from config.errors import ConfigError, DatasetError
    from config.load import load_domain
    from demo.report import print_report, write_report
    from demo.run import Demo, StepFailedError, run_demo
    from loadtest.evaluate import EvaluationError
    from loadtest.server import ServerError

    console = Console()
    if quality:
        _quality(Home(home), console)
        return
    files = tuple(default_file(f"domains/{name}.yaml") for name in DOMAINS)
    serve_file = default_file("serve.yaml")
    console.print(f"Configuration: {', '.join(map(str, (*files, serve_file)))}", highlight=False, soft_wrap=True)
    try:
        domains = tuple(load_domain(file) for file in files)
        plan = Demo(Home(home), domains, files, serve_file, console, fresh, limit)
        report = run_demo(plan)
    except (ConfigError, DatasetError, StepFailedError, ServerError, EvaluationError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
    json_file, html_file = write_report(report, plan.home.demo)
    print_report(report, console)
    _say_what_is_next(console, report.seconds, json_file, html_file)


def _quality(home: Home, console: Console) -> None:
    """The canaries' demo alone."""
    import httpx

    from adapters.errors import AdapterError
    from config.errors import ConfigError, DatasetError
    from demo.quality import print_quality_report, run_quality_demo
    from demo.trial import NoVerdictError
    from loadtest.server import ServerError

    try:
        report = run_quality_demo(home, default_file("serve.yaml"), console)
    except (AdapterError, ConfigError, DatasetError, ServerError, NoVerdictError, httpx.HTTPError) as error:
        hint = " Run `lorikeet demo` first." if isinstance(error, (AdapterError, DatasetError)) else ""
        Console(stderr=True).print(f"[red]error:[/red] {error}{hint}", highlight=False)
        raise typer.Exit(1) from None
    print_quality_report(report, console)
    console.print(f"Figures: {home.demo / 'quality' / 'report.json'}. The store in {home.adapters} is as it was.")


def _say_what_is_next(console: Console, seconds: float, json_file: Path, html_file: Path) -> None:
    console.print(
        f"Done in {seconds / 60:.1f} minutes. Figures: {json_file}, plots: {html_file}\n\n"
        "Next, [bold]make serve[/bold], and in a second terminal:\n"
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d '\n"
        '    {"model": "medical", "messages": [\n'
        '      {"role": "system", "content": "ICD-10-CM chapter of the term, as JSON {\\"chapter\\": \\"...\\"}."},\n'
        '      {"role": "user", "content": "Tuberculous pneumonia"}]}\'',
        highlight=False,
        soft_wrap=True,
    )
