"""`lorikeet loadtest compare`, `capacity` and `cliff`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from config.home import Home
from config.packaged import default_file
from config.terminal import labelled, make_console
from loadtest.load.options import RunOptions
from loadtest.load_cli import (
    ApiKey,
    ConfigFile,
    HomeFolder,
    MaxTokens,
    Models,
    PromptWords,
    Url,
    errors_shown,
    now_text,
    read_config,
)

Seconds = Annotated[float | None, typer.Option(help="Sending time of one run, seconds.")]


def compare(
    a: Annotated[Path, typer.Argument(help="Run folder or run.json of the baseline (A).")],
    b: Annotated[Path, typer.Argument(help="Run folder or run.json to compare with it (B).")],
    fail_if_worse: Annotated[
        str | None, typer.Option(help="e.g. 5%: exit code 1 if a figure of all traffic is significantly worse by more.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the comparison to this file.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.")] = 13,
) -> None:
    """Compare two runs: ratios with 95% intervals, and a verdict (better, worse, no different) for B."""
    from loadtest.load.files import read_run, replace_text
    from loadtest.report.compare import compare as compare_runs
    from loadtest.report.compare_tables import comparison_table, parse_share

    console = make_console()
    with errors_shown():
        share = parse_share(fail_if_worse) if fail_if_worse else None
        comparison = compare_runs(read_run(a), read_run(b), seed)
    console.print(comparison_table(comparison))
    for warning in comparison.warnings:
        console.print(labelled("warning:", "yellow", warning))
    if json_file:
        replace_text(json_file, comparison.model_dump_json(indent=2) + "\n")
    worse = comparison.worse_than(share) if share is not None else ()
    if worse:
        metrics = ", ".join(difference.metric for difference in worse)
        console.print(labelled(f"Significantly worse by more than {fail_if_worse}:", "red", metrics))
        raise typer.Exit(1)


def capacity(
    config_file: ConfigFile = None,
    slo: Annotated[str, typer.Option(help="e.g. ttft=500ms,itl=100ms,p=99,errors=1%.")] = "ttft=1s,errors=1%",
    low: Annotated[float, typer.Option(help="Rate expected to meet the SLO, requests per second.")] = 0.5,
    high: Annotated[float, typer.Option(help="Rate expected to miss it, requests per second.")] = 16.0,
    tolerance: Annotated[
        float, typer.Option(help="Stop when the failing rate is at most this share above the passing one.")
    ] = 0.15,
    max_runs: Annotated[int, typer.Option(help="Most runs.")] = 16,
    resume: Annotated[bool, typer.Option(help="Resume from the runs in --output.")] = False,
    url: Url = None,
    model: Models = None,
    duration: Seconds = None,
    prompt_words: PromptWords = None,
    max_tokens: MaxTokens = None,
    output: Annotated[
        Path | None, typer.Option(help="Output folder for capacity.json, .md, .svg and runs.jsonl.")
    ] = None,
    api_key: ApiKey = None,
    home: HomeFolder = Path("var"),
) -> None:
    """Find the highest rate that meets an SLO, by bisection; a rate fails if two runs fail."""
    from loadtest.report.slo import parse_slo
    from loadtest.search.report import write_capacity
    from loadtest.search.searches import search_capacity

    options = RunOptions(
        url=url, duration_s=duration, models=tuple(model or ()), prompt_words=prompt_words, max_tokens=max_tokens
    )
    folder, say = output or Home(home).loadtests / f"capacity-{now_text()}", _printer()
    with errors_shown():
        report = search_capacity(
            read_config(config_file, options),
            parse_slo(slo),
            (low, high, tolerance, max_runs),
            folder / "runs.jsonl",
            Home(home).datasets,
            is_resumed=resume,
            api_key=api_key,
            say=say,
        )
    path = write_capacity(report, folder)
    say(f"{report.result.reason}\n{path}")
    if report.result.capacity is None:
        raise typer.Exit(1)


def cliff(
    config_file: ConfigFile = None,
    max_loras: Annotated[list[int] | None, typer.Option(help="Server setting to sweep; may be repeated.")] = None,
    max_cpu_loras: Annotated[list[int] | None, typer.Option(help="Server setting for each --max-loras.")] = None,
    working_set: Annotated[
        list[int] | None,
        typer.Option(help="Number of adapters in use; may be repeated. Default: derived from the limits."),
    ] = None,
    adapter: Annotated[
        str, typer.Option(help="Adapter to copy as often as needed, in a temporary folder.")
    ] = "medical",
    url: Annotated[
        str | None, typer.Option(help="A running server instead of a temporary one; give its --model.")
    ] = None,
    model: Models = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    duration: Seconds = None,
    prompt_words: PromptWords = None,
    max_tokens: MaxTokens = None,
    factor: Annotated[
        float, typer.Option(help="The cliff is where TTFT p50 exceeds the plateau by this factor.")
    ] = 2.0,
    wanted: Annotated[
        int | None, typer.Option(help="Number of adapters to recommend settings for; default: the largest swept.")
    ] = None,
    serve_file: Annotated[
        Path | None,
        typer.Option("--serve", help="Server configuration; default: config/serve.yaml, or the packaged one."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output folder for cliff.json, .md and .svg.")] = None,
    home: HomeFolder = Path("var"),
) -> None:
    """Find the number of adapters in use at which TTFT rises, and recommend max_loras and max_cpu_loras."""
    from loadtest.search.report import write_cliff
    from loadtest.search.searches import CliffPlan, search_cliff
    from loadtest.search.sweep import pair_settings, working_sets_for

    options = RunOptions(
        url=url,
        models=tuple(model or ()),
        rate=rate,
        duration_s=duration,
        prompt_words=prompt_words,
        max_tokens=max_tokens,
    )
    folder, say = output or Home(home).loadtests / f"cliff-{now_text()}", _printer()
    with errors_shown():
        settings = pair_settings(max_loras or [4], max_cpu_loras or [16])
        sizes = tuple(working_set or working_sets_for(settings))
        config = read_config(config_file, options if url else _with_stand_ins(options, adapter, max(sizes)))
        serve_config = serve_file or default_file("serve.yaml")
        plan = CliffPlan(config, settings, sizes, factor, wanted, adapter, serve_config, Home(home), bool(url))
        report = search_cliff(plan, say)
    path = write_cliff(report, folder)
    chosen = report.recommendation
    recommended = f"max_loras {chosen.max_loras}, max_cpu_loras {chosen.max_cpu_loras}"
    say(f"Recommended: {recommended}. {chosen.reason}\n{path}")


def _with_stand_ins(options: RunOptions, adapter: str, num_models: int) -> RunOptions:
    """Placeholder model names, since the copies' names are known only after they are created."""
    return replace(options, models=(adapter,) * num_models)


def _printer() -> Callable[[str], None]:
    return partial(make_console().print, highlight=False, soft_wrap=True)
