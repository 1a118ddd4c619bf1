"""`lorikeet eval decide`: should this domain be fine-tuned?"""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigError, DatasetError
from config.home import Home
from config.load import check_name, load_domain
from config.packaged import default_file
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import make_console, print_error
from quality.errors import MetricError

_YAML = (".yaml", ".yml")


def decide(
    domain: Annotated[
        str, typer.Argument(help="Domain (config/domains/<domain>.yaml, own or packaged), or its YAML file.")
    ],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter to compare, as medical@3; default: the domain's stable version, if any.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible endpoint; default: the server running at the port of --serve, else a temporary one."
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=0, help="Examples in a prompt; default: the domain's `evaluation.num_few_shot`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of held-out questions to ask.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 8,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of the serving machine per hour, in any currency.")
    ] = None,
    curve: Annotated[bool, typer.Option(help="Train on 10, 30 and 100% of the rows for a learning curve.")] = True,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="API key of the endpoint.")] = "none",
    serve_file: Annotated[
        Path | None,
        typer.Option("--serve", help="Server configuration; default: config/serve.yaml, or the packaged one."),
    ] = None,
    home: Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Should I fine-tune? Compare prompting, retrieval and the adapter on held-out questions, and recommend one."""
    from adapters.errors import AdapterError
    from loadtest.bench.server import ServerError
    from loadtest.errors import LoadtestError
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.decide.page import print_decision, render_decision
    from loadtest.evaluation.decide.report import save_decision
    from loadtest.evaluation.decide.run import DecideOptions, packaged_embed
    from loadtest.evaluation.decide.run import decide as run_decide

    console = make_console()
    _quiet_libraries()
    try:
        config = load_domain(_file_of(domain))
        options = DecideOptions(
            Home(home),
            config,
            serve_file or default_file("serve.yaml"),
            url=url,
            adapter=adapter,
            num_examples=examples,
            limit=limit,
            concurrency=concurrency,
            price_per_hour=price_per_hour,
            has_curve=curve,
            api_key=api_key,
        )
        with interrupted_by_sigterm():
            report = run_decide(options, console, embed=packaged_embed())
    except KeyboardInterrupt as interrupt:
        console.print("\ninterrupted; run the same command again to continue", markup=False)
        raise typer.Exit(exit_code_of(interrupt)) from None
    except (
        AdapterError, ConfigError, DatasetError, EvaluationError, LoadtestError, MetricError, ServerError
    ) as error:  # fmt: skip
        print_error(error)
        raise typer.Exit(1) from None
    path = save_decision(report, Home(home).evaluations / config.name / "decide")
    page = path.with_suffix(".html")
    page.write_text(render_decision(report), encoding="utf-8")
    print_decision(console, report)
    console.print(f"report: {path}; page: {page}", markup=False)


def _quiet_libraries() -> None:
    """Silence what loads the embedding model; it reads these when it is imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for noisy in ("bitsandbytes", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _file_of(domain: str) -> Path:
    """The YAML file of a domain's name, or the file that was given."""
    if domain.endswith(_YAML):
        return Path(domain)
    file = default_file(f"domains/{check_name(domain)}.yaml")
    if not file.is_file():
        raise ConfigError(f"config/domains/{domain}.yaml does not exist. Give the domain's YAML file.")
    return file
