"""`lorikeet quality`: label sampled answers, export and import labels as CSV, and report quality."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.errors import AdapterError
from config.home import Home
from config.terminal import make_console, print_error
from quality.errors import QualityError

if TYPE_CHECKING:
    from quality.samples.store import QualityStore

app = typer.Typer(no_args_is_help=True, help="Answer quality: label samples, import and export labels, report.")

DEFAULT_HOME = Path("var")

AdapterArgument = Annotated[str | None, typer.Argument(help="Adapter name; default: all adapters.")]
HomeOption = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")]
WhoOption = Annotated[
    str, typer.Option("--who", envvar=["LORIKEET_WHO", "USER"], help="Name of the labeller; several people may label.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE.csv", dir_okay=False)]

_MAX_TO_LABEL = 10_000

_HOW_TO_KEEP_TEXT = (
    "Labels and judges need text: set `quality: {privacy: redacted}` (or `full`) in serve.yaml and "
    "restart the server. It then stores the text of new samples."
)


class NothingToDoError(Exception):
    """The command has no data to work on; the message says why, and what to do."""


@app.command()
def label(
    adapter: AdapterArgument = None,
    who: WhoOption = "unknown",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of samples in this session.")] = 100,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show sampled answers one at a time and ask for a label; each label is saved immediately."""
    from serve.monitor.labels.labelling import Labelling, to_label

    console = make_console()
    with _errors_in_one_line(), _store(home) as store:
        samples = to_label(store, adapter, limit)
        if not samples:
            raise NothingToDoError(why_nothing_to_label(store, adapter))
        session = Labelling(store, samples, who, console, _ask)
        try:
            session.run()
        except (KeyboardInterrupt, EOFError):
            console.print()
        num_labelled, num_left = session.progress
        console.print(f"{num_labelled} labelled by {who}, {num_left} left.", highlight=False)
        if num_labelled:
            console.print("`lorikeet quality report` shows how well the judge agrees with the labels.", highlight=False)


@app.command("export-labels")
def export_labels(
    file: FileArgument,
    adapter: Annotated[str | None, typer.Option(help="Export only samples of this adapter.")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Include the newest samples without a label.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Export the labels with their samples to a CSV file that only its owner can read."""
    from serve.monitor.labels.csv import write_labels
    from serve.monitor.labels.labelling import to_label

    with _errors_in_one_line(), _store(home) as store:
        found = [(store.sample(one.sample_id), one) for one in store.labels(adapter)]
        rows = [(sample, one) for sample, one in found if sample is not None]  # retention may be at work
        others = to_label(store, adapter, _MAX_TO_LABEL) if unlabelled else []
        if not rows and not others:
            raise NothingToDoError(why_nothing_to_label(store, adapter) if unlabelled else _NO_LABELS)
        _replace(file, write_labels([*rows, *((sample, None) for sample in others)]))
    said = f"{len(rows)} labels" + (f" and {len(others)} samples without one" if unlabelled else "")
    make_console().print(f"Wrote {said} to {file}.", highlight=False)


@app.command("import-labels")
def import_labels(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", dir_okay=False, exists=True)],
    who: WhoOption = "unknown",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Import labels from a CSV file (columns sample_id and label: 1 to 5, right or wrong); all or none."""
    from serve.monitor.labels.csv import LabelsError, read_labels

    with _errors_in_one_line(), _store(home) as store:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise LabelsError(f"{file} is not UTF-8 text: {error}. Save it as `CSV UTF-8`.") from error
        labels = read_labels(text, store.sample, who=who, at_s=time.time())
        if not labels:
            raise NothingToDoError(f"{file} contains no labels: the column `label` is empty in every row.")
        store.add_labels(labels)
    make_console().print(f"Imported {len(labels)} labels from {file}.", highlight=False)


@app.command()
def report(
    adapter: AdapterArgument = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write the report as an HTML page with plots.", dir_okay=False)
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the figures as JSON.", dir_okay=False)] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Report each version's held-out accuracy, judge scores, labels, drift and decisions, and list missing data."""
    from adapters.store.reader import StoreReader
    from serve.monitor.report.collect import collect  # the statistics alone take a second to import
    from serve.monitor.report.terminal import print_report

    console = make_console()
    with _errors_in_one_line(), _store(home) as store:
        figures = collect(store, StoreReader(Home(home).adapters), adapter, datetime.now(UTC))
        print_report(figures, console)
        if json is not None:
            _replace(json, figures.model_dump_json(indent=2) + "\n")
        if html is not None:
            from serve.monitor.report.html import render_html

            _replace(html, render_html(figures))
    for file in (html, json):
        if file is not None:
            console.print(f"Wrote {file}.", highlight=False)


_NO_LABELS = "No labels exist yet. Label with `lorikeet quality label`, or export samples to label with `--unlabelled`."


def why_nothing_to_label(store: "QualityStore", adapter: str | None) -> str:
    """Why no sample waits for a label, and what to do."""
    of = f" of {adapter!r}" if adapter else ""
    samples = store.samples(adapter)
    num_with_text = sum(sample.answer is not None for sample in samples)
    if num_with_text:
        return f"All {num_with_text} samples with text{of} are labelled."
    if samples:
        modes = ", ".join(sorted({sample.privacy for sample in samples}))
        return f"{len(samples)} samples{of} exist, but none with text (privacy {modes}). {_HOW_TO_KEEP_TEXT}"
    known = Counter(sample.adapter for sample in store.samples()) if adapter else {}
    if known:
        return f"No samples of {adapter!r} exist, only of {', '.join(sorted(known))}."
    return f"No samples exist yet: a running server stores a share of its answers. {_HOW_TO_KEEP_TEXT}"


@contextmanager
def _store(home: Path) -> Iterator["QualityStore"]:
    from quality.samples.store import QualityStore

    path = Home(home).quality
    if not path.exists():
        raise NothingToDoError(
            f"No quality store at {path} yet: `lorikeet serve` creates it, unless `quality.enabled` is false."
        )
    with QualityStore(path) as store:
        yield store


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (NothingToDoError, QualityError, AdapterError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None


def _ask(question: str) -> str:
    try:
        return input(question)
    except UnicodeDecodeError:  # half a character was typed
        return ""


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
