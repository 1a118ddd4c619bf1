"""Labels as a table: what `export-labels` writes and `import-labels` reads, for a spreadsheet between the two.

Only `sample_id`, `label`, `who` and `note` are read back; `adapter` and `version`, where they are there, must be the
sample's, so that the labels of another server's samples are not taken for ours.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from quality.errors import QualityError
from quality.judge import grade_of
from quality.labels import allow_long_fields, as_written, harmless, label_score
from quality.samples.records import Label, Sample

COLUMNS = ("sample_id", "adapter", "version", "at", "prompt", "answer", "label", "who", "note")

_REQUIRED = ("sample_id", "label")
_MAX_SHOWN = 10


class LabelsError(QualityError, ValueError):
    """A file of labels that cannot be taken; the message names up to ten lines."""


def write_labels(rows: Iterable[tuple[Sample, Label | None]]) -> str:
    """The table; a sample without a label has an empty one, to be filled in."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for sample, label in rows:
        at = datetime.fromtimestamp(sample.at_s, UTC).isoformat(timespec="seconds")
        said = (grade_of(label.score), label.who, label.note) if label else ("", "", "")
        cells = (sample.id, sample.adapter, sample.version, at, sample.prompt or "", sample.answer or "", *said)
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def read_labels(text: str, sample_of: Callable[[int], Sample | None], *, who: str, at_s: float) -> tuple[Label, ...]:
    """Every label of a table; rows without one are passed over.

    Args:
        sample_of: The sample with an id, None where there is none.
        who: Who labelled the rows that do not say it.

    Raises:
        LabelsError: A column is missing, or any row is wrong.
    """
    allow_long_fields()
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    labels: dict[tuple[int, str], Label] = {}
    problems: list[str] = []
    try:
        missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
        if missing:
            raise LabelsError(f"The first line must name the columns {', '.join(_REQUIRED)}; missing: {missing}.")
        for row in reader:
            try:
                label = _label(row, sample_of, who, at_s)
                if label is not None and (label.sample_id, label.who) in labels:
                    raise LabelsError(f"{label.who!r} already labelled sample {label.sample_id} in an earlier line")
            except LabelsError as error:
                problems.append(f"line {reader.line_num}: {error}")
            else:
                if label is not None:
                    labels[label.sample_id, label.who] = label
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: invalid CSV: {error}")
    if problems:
        raise LabelsError("\n".join(_first_problems(problems)))
    return tuple(labels.values())


def _label(
    row: dict[str, str | None], sample_of: Callable[[int], Sample | None], who: str, at_s: float
) -> Label | None:
    said = (row.get("label") or "").strip()
    if not said:
        return None
    score = label_score(said)
    if score is None:
        raise LabelsError(f"`label` must be 1 to 5, right or wrong; got {said!r}")
    sample_id = (row.get("sample_id") or "").strip()
    sample = sample_of(int(sample_id)) if sample_id.isdecimal() and len(sample_id) < 19 else None
    if sample is None:
        raise LabelsError(f"sample {sample_id!r} does not exist; it may have been deleted by retention")
    for name, here in (("adapter", sample.adapter), ("version", str(sample.version))):
        if as_written((row.get(name) or "").strip() or here) != here:
            raise LabelsError(
                f"sample {sample_id} has {name} {here!r} in this store, but {row[name]!r} in the file; was it "
                "exported from another server?"
            )
    said_by = as_written((row.get("who") or "").strip()) or who
    return Label(sample.id, said_by, at_s, score, as_written(row.get("note") or ""))


def _first_problems(problems: list[str]) -> Iterator[str]:
    yield from problems[:_MAX_SHOWN]
    if len(problems) > _MAX_SHOWN:
        yield f"and {len(problems) - _MAX_SHOWN} more lines"
