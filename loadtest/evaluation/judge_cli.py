"""The judges of `lorikeet eval run`: asked after the models have answered, with progress on the terminal."""

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from config.dataset import DatasetManifest, DatasetRow
from config.home import Home
from config.progress import Progress, shown

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.evaluation.asking import Answers
    from quality.metrics.item import Metric


def judge_answers(
    console: "Console",
    home: Home,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    answers: "Sequence[Answers]",
    metrics: "Sequence[Metric]",
    *,
    url: str | None,
    api_key: str,
    concurrency: int,
) -> None:
    """Fill in the metrics that a judge decides; nothing is asked where there are none.

    Args:
        url: The server under evaluation; None: only judges with a URL of their own are asked.

    Raises:
        EvaluationError: A judge cannot be reached.
    """
    from quality.metrics.judged import Judged, JudgedPairs

    judges = [metric for metric in metrics if isinstance(metric, Judged | JudgedPairs)]
    if judges:
        run = _judge(console, home, manifest, rows, answers, judges, url, api_key, concurrency)
        for note in asyncio.run(run):
            console.print(note, highlight=False, soft_wrap=True)


def check_api_keys(metrics: "Sequence[Metric]") -> None:
    """Check that judges can be asked, before anything is.

    Raises:
        EvaluationError: An API key is not set.
    """
    from loadtest.evaluation.judging import check_judges

    check_judges(metrics, os.environ)


async def _judge(
    console: "Console",
    home: Home,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    answers: "Sequence[Answers]",
    judges: Sequence[object],
    url: str | None,
    api_key: str,
    concurrency: int,
) -> list[str]:
    from openai import AsyncOpenAI

    from loadtest.evaluation.calibration import ask_judges, labels_of_served
    from loadtest.evaluation.judging import TIMEOUT_S, JudgePlace
    from loadtest.evaluation.report import answered
    from loadtest.evaluation.sheets import labels_of_sheets

    folder = home.evaluations / manifest.domain
    labelled = [*labels_of_served(home, manifest.domain), *labels_of_sheets(folder)]
    items = [answered(rows, found) for found in answers]
    server = None if url is None else AsyncOpenAI(base_url=url, api_key=api_key, max_retries=2, timeout=TIMEOUT_S)
    place = JudgePlace(server, folder, os.environ, concurrency)
    try:
        with shown(Progress("judge answers", unit="answers"), console) as progress:
            return await ask_judges(judges, items, place, manifest.rubric, labelled, progress)
    finally:
        if server is not None:
            await server.close()
