"""Examples from files: find them, detect each one's layout, read their rows, and list what is wrong with them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from config.data import DataConfig
from config.dataset import Origin
from train.data.detect import DETECTION_ROWS, check_leftovers, layout_of, spreadsheet_columns
from train.data.examples import Example
from train.data.files.containers import is_document, read_records
from train.data.files.paths import DataFile, digest_of, find_files
from train.data.files.records import Fault, Faults, SourceRecord
from train.data.formats import FORMATS
from train.data.formats.format import Format, present
from train.data.formats.row import NoAnswerError, RowError, SourceRow
from train.errors import DataError

_MAX_PLACES = 3


@dataclass(frozen=True)
class ReadFile:
    """One file that was read."""

    name: str
    size_bytes: int
    sha256: str
    layout: str
    num_rows: int


@dataclass(frozen=True)
class SkippedRow:
    """A row that makes no example, though nothing is wrong with it."""

    origin: Origin
    reason: str


@dataclass(frozen=True)
class FileExamples:
    """What files gave.

    Attributes:
        notes: Lines for the terminal: layouts, columns that are not used, rows that were skipped.
    """

    examples: tuple[Example, ...]
    files: tuple[ReadFile, ...]
    skipped: tuple[SkippedRow, ...]
    notes: tuple[str, ...]


def read_files(
    paths: Sequence[str], config: DataConfig, refusal: str | None = None, slice_by: Sequence[str] = ()
) -> FileExamples:
    """All examples of files.

    Args:
        refusal: Answer of out-of-scope rows that have none.
        slice_by: Columns that are used beside those of the layout.

    Raises:
        DataError: A file is missing or unreadable, its layout is unknown, or rows are malformed; up to ten are listed.
    """
    files, notes = find_files(paths)
    faults = Faults()
    readers = [_FileReader(file, config, refusal, faults, slice_by) for file in files]
    read = [reader.read() for reader in readers]
    faults.raise_any()
    examples = tuple(example for reader in readers for example in reader.examples)
    if not examples:
        raise DataError(f"No example in {', '.join(file.name for file in files)}: {' '.join(read[0].notes)}")
    return FileExamples(
        examples,
        tuple(part.file for part in read),
        tuple(row for reader in readers for row in reader.skipped),
        (*notes, *(note for part in read for note in part.notes)),
    )


@dataclass(frozen=True)
class _Read:
    file: ReadFile
    notes: list[str]


@dataclass
class _FileReader:
    """Reads one file."""

    file: DataFile
    config: DataConfig
    refusal: str | None
    faults: Faults
    slice_by: Sequence[str] = ()
    examples: list[Example] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    num_rows: int = 0

    def read(self) -> _Read:
        digest = digest_of(self.file)
        rows = self._well_formed()
        head = list(islice(rows, DETECTION_ROWS))
        if not head and not self.num_rows:
            raise DataError(f"{self.file.name} has no rows.")
        layout = self._layout(head)
        filled: set[str] = set()
        records: Iterable[SourceRecord] = chain(head, rows)
        notes = []
        if layout.gather is not None:
            records, gathered = layout.gather(records)
            notes += [f"{self.file.name}: {note}." for note in gathered]
        for record in records:
            filled.update(name for name, value in record.fields.items() if value not in (None, "", []))
            self._read_row(layout, record)
        check_leftovers(self.file.name, layout, filled, self.config)
        source = ReadFile(digest.name, digest.size_bytes, digest.sha256, layout.layout, self.num_rows)
        return _Read(source, [self._summary(layout), *notes, *self._unused()])

    def _layout(self, head: list[SourceRecord]) -> Format:
        if is_document(self.file) and self.config.layout == "auto" and not self.config.columns:
            return next(layout for layout in FORMATS if layout.layout == "text")
        if spreadsheet := spreadsheet_columns(head, self.config):
            self.config = self.config.model_copy(update={"columns": {**spreadsheet, **self.config.columns}})
        return layout_of(self.file.name, head, self.config)

    def _well_formed(self) -> Iterator[SourceRecord]:
        """Rows that could be parsed; the others are faults."""
        for record in read_records(self.file, self.config.encoding):
            self.num_rows += 1
            if isinstance(record, Fault):
                self.faults.add(record)
            else:
                yield record

    def _read_row(self, layout: Format, record: SourceRecord) -> None:
        self.seen.update(present(record.fields))
        row = self._row(record)
        try:
            self.examples.append(layout.read(row))
        except RowError as fault:
            self.faults.add(Fault(record.origin, fault.field, fault.found, fault.wanted))
        except NoAnswerError:
            self.skipped.append(SkippedRow(record.origin, "no answer"))

    def _row(self, record: SourceRecord) -> SourceRow:
        columns = record.fields
        if names := self.config.columns:
            others = {name: value for name, value in columns.items() if name not in names.values()}
            columns = {**others, **{name: record.fields.get(column) for name, column in names.items()}}
        plain = {name: value for name, value in record.fields.items() if not isinstance(value, dict | list | bytes)}
        return SourceRow(columns, plain, record.origin, self.used, self.seen, self.refusal, self.config.columns)

    def _summary(self, layout: Format) -> str:
        how = "detected" if self.config.layout == "auto" else "as set"
        noun = "row" if self.num_rows == 1 else "rows"
        summary = f"{self.file.name}: {layout.title} ({how}), {self.num_rows:,} {noun}"
        if not self.skipped:
            return f"{summary}."
        places = ", ".join(str(row.origin.line) for row in self.skipped[:_MAX_PLACES])
        word = "line" if len(self.skipped) == 1 else "lines"
        more = ", …" if len(self.skipped) > _MAX_PLACES else ""
        return f"{summary}, {len(self.skipped):,} of them skipped: without an answer ({word} {places}{more})."

    def _unused(self) -> list[str]:
        """A note on the columns that nothing used."""
        names = self.config.columns
        used = {names.get(name, name) for name in self.used}
        used |= {self.config.group_by or "", self.config.time_by or "", self.config.stratify_by or "", *self.slice_by}
        unused = sorted(self.seen - used)
        return [f"{self.file.name}: columns not used: {', '.join(unused)}."] if unused else []
