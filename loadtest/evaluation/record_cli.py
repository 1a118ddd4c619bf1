"""`lorikeet record`: save the answers of a provider's model before it is switched off."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.errors import AdapterError
from config.dataset import DatasetManifest, DatasetRow, held_out_questions
from config.errors import ConfigError, DatasetError
from config.home import Home
from config.progress import Progress, shown
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import make_console, print_error

if TYPE_CHECKING:
    from loadtest.evaluation.recording import Recorded


def record(
    domain: Annotated[str, typer.Argument(help="Domain whose held-out questions to ask; its data set must be built.")],
    url: Annotated[str, typer.Option(help="Base URL of the provider, e.g. https://api.openai.com/v1.")],
    model: Annotated[str, typer.Option(help="Model of the provider, e.g. ft:gpt-4.1-mini-2025-04-14:org::abc.")],
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the provider's API key; the key is not stored.")
    ] = "OPENAI_API_KEY",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Token budget for prompts and answers, including earlier runs.")
    ] = 1_000_000,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions to ask; default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    home: Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Ask a provider's model the held-out questions and save its answers as a reference; run again to continue."""
    from loadtest.evaluate import EvaluationError

    state, console = Home(home), make_console()
    try:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url!r} must be an http(s) URL, as https://api.openai.com/v1.")
        manifest, rows = held_out_questions(state.datasets / domain, limit)
        place = state.evaluations / domain / manifest.dataset_sha256[:12]
        progress = Progress(f"record {model}", len(rows), "answers")
        with interrupted_by_sigterm(), shown(progress, console):
            recording = _record(
                manifest, rows, model, place, progress, url, os.environ.get(api_key_env), max_tokens, concurrency
            )
            found = asyncio.run(recording)
    except (DatasetError, EvaluationError, ConfigError, AdapterError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interrupt:
        console.print("\ninterrupted; run the same `lorikeet record` again to continue", soft_wrap=True)
        raise typer.Exit(exit_code_of(interrupt)) from None
    name, num_kept = found.answers.served_by, len(rows) - found.num_left
    console.print(f"kept {num_kept} of {len(rows)} answers of {name}, {found.num_tokens:,} tokens", soft_wrap=True)
    if found.num_left:
        print_error(f"The budget of {max_tokens:,} tokens is spent. Run it again with a higher `--max-tokens`.")
        raise typer.Exit(1)
    console.print(f"to compare: lorikeet eval compare {domain} --reference {name}", soft_wrap=True)


async def _record(
    manifest: DatasetManifest,
    rows: list[DatasetRow],
    model: str,
    place: Path,
    progress: Progress,
    url: str,
    api_key: str | None,
    max_tokens: int,
    concurrency: int,
) -> "Recorded":
    from openai import AsyncOpenAI

    from loadtest.evaluation.recording import record_answers

    # A provider limits requests by the minute, and says in `Retry-After` how long to wait.
    async with AsyncOpenAI(base_url=url, api_key=api_key or "none", max_retries=10, timeout=120) as client:
        return await record_answers(
            client,
            manifest,
            rows,
            model,
            place,
            max_tokens=max_tokens,
            concurrency=concurrency,
            on_answers=progress.advance,
        )
