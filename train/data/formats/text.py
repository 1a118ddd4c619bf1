"""Documents for language modelling: text and Markdown files, or rows with a column `text` only."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow


def _read(row: SourceRow) -> Example:
    is_synthetic = row.flag("is_synthetic", default=False)
    return Example(
        "language_modeling",
        text=row.text("text"),
        origin=row.origin,
        fields=row.fields,
        is_synthetic=is_synthetic,
    )


FORMAT = Format("text", "text", (("text",),), _read)
