"""`lorikeet eval export-sheet`, `grade` and `import-sheet`: people grade answers of models that they do not know."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from config.dataset import DatasetManifest, DatasetRow, read_dataset, read_split
from config.errors import DatasetError
from config.home import Home
from config.private import write_private
from config.progress import Progress, shown
from config.terminal import make_console, print_error

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from rich.console import Console

    from loadtest.evaluation.asking import Answers
    from loadtest.evaluation.sheets import SheetGrades, SheetKey
    from quality.agreement import Agreement
    from quality.metrics.item import Item

HomeFolder = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")]


def export_sheet(
    domain: Annotated[str, typer.Argument(help="Built data set.")],
    model: Annotated[
        list[str], typer.Option(help="Model to grade; repeatable. The first is what others compare with.")
    ],
    out: Annotated[Path, typer.Option(help="CSV file to write.", dir_okay=False)],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of questions, drawn at random.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the draw and the order.")] = 13,
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint.")] = "http://127.0.0.1:8000/v1",
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 16,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="API key of the endpoint.")] = "none",
    home: HomeFolder = Path("var"),
) -> None:
    """Write a sheet of answers for people to grade, shuffled and without the models' names."""
    from openai import AsyncOpenAI

    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.sheets import make_sheet, save_key, sheet_csv

    console, place = make_console(), Home(home).evaluations / domain
    try:
        if out.exists():
            raise EvaluationError(f"{out} exists, perhaps with grades. Give another `--out`.")
        if not out.parent.is_dir():
            raise EvaluationError(f"Folder {out.parent} of `--out` does not exist. Create it.")
        folder = Home(home).datasets / domain
        manifest, rows = read_dataset(folder), read_split(folder, "test")
        chosen = sorted(random.Random(seed).sample(range(len(rows)), min(n, len(rows))))
        asked = [rows[number] for number in chosen]
        models = list(dict.fromkeys(model))
        answers = asyncio.run(
            _ask(
                console,
                AsyncOpenAI(base_url=url, api_key=api_key, timeout=600),
                manifest,
                asked,
                models,
                place,
                concurrency,
            )
        )
        key = make_sheet(domain, manifest.version, _by_version(chosen, asked, answers), seed)
        save_key(place, key)
        write_private(out, "\ufeff" + sheet_csv(key))  # without the mark spreadsheets take UTF-8 for another encoding
    except (DatasetError, EvaluationError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    console.print(
        f"{out}: {len(key.rows)} answers of {len(models)} models to {len(chosen)} questions. Fill in `score`: 1 to 5, "
        f"or right and wrong. Then: lorikeet eval import-sheet {out}",
        highlight=False,
        soft_wrap=True,
    )


def import_sheet(
    sheet: Annotated[list[Path], typer.Argument(help="Graded sheets, one or several.", dir_okay=False)],
    grader: Annotated[str, typer.Option(help="Who graded rows without `grader`; default: the file's name.")] = "",
    home: HomeFolder = Path("var"),
) -> None:
    """Read graded sheets; print people's scores of each model and how far the graders agree."""
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.graded import joined, read_sheet
    from loadtest.evaluation.sheets import add_grades, read_grades

    evaluations = Home(home).evaluations
    try:
        read = [read_sheet(path, lambda name: _key_of(evaluations, name), grader or path.stem) for path in sheet]
        key, new = joined(read)
        place = evaluations / key.domain
        earlier = read_grades(place, key.sheet)
        grades = add_grades(place, key.sheet, new)
    except (EvaluationError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    console = make_console()
    if num_replaced := len(earlier.grades) + len(new) - len(grades.grades):
        console.print(f"{num_replaced} earlier grades of the same graders are replaced.", highlight=False)
    print_grades(console, key, grades)


def grade(
    sheet: Annotated[Path, typer.Argument(help="Exported sheet, which is not changed.", dir_okay=False)],
    grader: Annotated[str, typer.Option(envvar=["LORIKEET_WHO", "USER"], help="Name of the grader.")] = "unknown",
    home: HomeFolder = Path("var"),
) -> None:
    """Grade a sheet in the terminal; each grade is saved at once."""
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.graded import key_of_sheet
    from loadtest.evaluation.grading import grade_rows
    from loadtest.evaluation.sheets import read_grades

    console, evaluations = make_console(), Home(home).evaluations
    try:
        key = key_of_sheet(sheet, lambda name: _key_of(evaluations, name))
        place = evaluations / key.domain
        count, left = grade_rows(place, key, grader, console, input)
    except (EvaluationError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    console.print(f"{count} answers graded by {grader}, {left} left.", highlight=False)
    if not left:  # figures before would tell whose answers are which
        print_grades(console, key, read_grades(place, key.sheet))


async def _ask(
    console: "Console",
    client: "AsyncOpenAI",
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    models: Sequence[str],
    place: Path,
    concurrency: int,
) -> "list[Answers]":
    """The answers of each model, those that `lorikeet eval run` has saved among them."""
    from loadtest.evaluation.asking import BASE, ask_all, base_model

    folder, found = place / manifest.dataset_sha256[:12], []
    async with client:
        for model in models:
            reference = await base_model(client) if model == BASE else model
            with shown(Progress(f"{model} on {manifest.domain}", len(rows), "answers"), console) as progress:
                found.append(
                    await ask_all(
                        client, manifest, rows, reference, folder,
                        concurrency=concurrency, on_answers=progress.advance,
                    )
                )  # fmt: skip
    return found


def _key_of(evaluations: Path, name: str) -> "SheetKey | None":
    from loadtest.evaluation.sheets import find_key

    found = find_key(evaluations, name)
    return found[1] if found else None


def print_grades(console: "Console", key: "SheetKey", grades: "SheetGrades") -> None:
    """Print people's figures of each model, and the agreement of the graders."""
    from loadtest.evaluation.graded import graded_models, graders_agreement
    from loadtest.evaluation.page import p_text

    num_graded, graders = len(grades.by_row()), sorted({grade.grader for grade in grades.grades})
    table = Table(
        "model", "score by people", f"minus {key.models[0]}",
        title=f"{key.domain}: {num_graded} of {len(key.rows)} answers graded by {len(graders)}",
    )  # fmt: skip
    for own in graded_models(key, grades):
        figure, difference = own.figure, own.difference
        score = f"{figure.value:.3f} ({figure.ci_low:.3f} to {figure.ci_high:.3f}), n {figure.n}"
        minus = ""
        if difference is not None and difference.n:
            interval = f"({difference.ci_low:+.3f} to {difference.ci_high:+.3f})"
            minus = f"{difference.value:+.3f} {interval}, p {p_text(difference.p)}, n {difference.n}"
        table.add_row(own.model, score, minus)
    console.print(table)
    console.print(_agreement_text(graders, graders_agreement(grades)), highlight=False, soft_wrap=True)


def _agreement_text(graders: Sequence[str], found: "Agreement | None") -> str:
    if found is None:
        return "One grader: agreement is unknown. Give the sheet to a second person."
    if not found.n:
        return f"{', '.join(graders)} have graded no answer in common: agreement is unknown."
    name = "kappa" if len(graders) == 2 else "Krippendorff's alpha"
    if found.kappa is None or found.ci_low is None or found.ci_high is None:
        return f"{name} of {', '.join(graders)} does not exist: all grades are the same, n {found.n}."
    interval = f"({found.ci_low:.3f} to {found.ci_high:.3f})"
    return f"{name} of {', '.join(graders)}: {found.kappa:.3f} {interval}, n {found.n}."


def _by_version(
    chosen: Sequence[int], rows: Sequence[DatasetRow], answers: "Sequence[Answers]"
) -> "dict[str, list[Item]]":
    """Items by the version that answered, with their numbers in the whole split.

    Raises:
        EvaluationError: Two names lead to the same version.
    """
    from loadtest.evaluate import EvaluationError
    from loadtest.evaluation.report import answered

    found: dict[str, list[Item]] = {}
    for own in answers:
        if own.served_by in found:
            raise EvaluationError(f"{own.model!r} is {own.served_by!r}, which is in the sheet already. Name it once.")
        items = zip(chosen, rows, answered(rows, own), strict=True)
        found[own.served_by] = [
            replace(item, id=f"{number + 1}: {row.origin}" if row.origin else str(number + 1))
            for number, row, item in items
        ]
    return found
