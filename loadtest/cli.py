"""`lorikeet eval`: score any OpenAI-compatible endpoint on a domain's held-out split."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from config.dataset import read_dataset
from config.errors import DatasetError
from config.home import Home
from config.progress import Progress, shown
from config.terminal import make_console, print_error

if TYPE_CHECKING:
    from loadtest.evaluate import LiveScore


def evaluate(
    domain: Annotated[str, typer.Argument(help="Built data set, e.g. medical.")],
    model: Annotated[str, typer.Option(help="Model reference; default: the domain's name.")] = "",
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint.")] = "http://127.0.0.1:8000/v1",
    few_shot: Annotated[bool, typer.Option(help="Add the data set's few-shot examples to the prompt.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of examples to evaluate; default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 16,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Score a served model on a domain's held-out split through the endpoint."""
    from openai import AsyncOpenAI

    from loadtest.evaluate import EvaluationError, evaluate_live

    folder, console = Home(home).datasets / domain, make_console()

    async def run() -> "LiveScore":
        num_rows = read_dataset(folder).num_test
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
            total = min(limit or num_rows, num_rows)
            with shown(Progress(f"{model or domain} on {domain}", total, "answers"), console) as progress:
                return await evaluate_live(
                    client,
                    folder,
                    model or domain,
                    few_shot=few_shot,
                    limit=limit,
                    concurrency=concurrency,
                    on_answer=progress.advance,
                )

    try:
        console.print(_table(asyncio.run(run()), domain))
    except (DatasetError, EvaluationError) as error:
        print_error(error)
        raise typer.Exit(1) from None


def _table(score: "LiveScore", domain: str) -> Table:
    table = Table("domain", "model", "n", "accuracy (95% interval)", "valid format", "tokens/s", "TTFT p50")
    accuracy = score.accuracy
    table.add_row(
        domain,
        score.served_by,
        str(accuracy.n),
        f"{accuracy.value:.1%} ({accuracy.ci_low:.1%} to {accuracy.ci_high:.1%})",
        f"{score.valid_format.value:.1%}",
        f"{score.tokens_per_s:.0f}",
        f"{score.ttft_p50_s * 1000:.0f} ms",
    )
    return table
