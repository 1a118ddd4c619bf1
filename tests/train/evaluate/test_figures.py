"""Figures of base and adapter, whole and by slice, as the manifest holds them."""

from adapters.store.evaluation_records import FigureRecord
from config.dataset import DatasetRow, conversation
from config.domain import ChatConfig
from config.items import items_of
from quality.metrics.answers import exact_match, length, numeric
from train.evaluate.figures import figure_record, figures_of

CHAT = ChatConfig(system="Name the colour.")


def rows_of(*pairs: tuple[str, str], out_of_scope: int = 0) -> list[DatasetRow]:
    first_out = len(pairs) - out_of_scope
    return [
        DatasetRow(messages=conversation(CHAT, text, answer), input=text, output=answer, in_scope=number < first_out)
        for number, (text, answer) in enumerate(pairs)
    ]


ROWS = rows_of(("blood", "red"), ("grass", "green"), ("leaf", "green"), ("a song", "none"), out_of_scope=1)
BASE = items_of(ROWS, ["red", "red", "red", "none"])
ADAPTER = items_of(ROWS, ["red", "green", "green", "red"])


def by_key(records: tuple[FigureRecord, ...]) -> dict[str, FigureRecord]:
    return {record.key: record for record in records}


def test_a_figure_pairs_base_and_adapter_by_question() -> None:
    record = figures_of([exact_match()], BASE, ADAPTER)[0]
    assert record.base is not None
    assert record.difference is not None
    assert (record.base.value, record.adapter.value, record.difference.value) == (0.5, 0.75, 0.25)
    assert record.difference.ci_low < 0 < record.difference.ci_high


def test_each_slice_has_its_own_figure() -> None:
    found = by_key(figures_of([exact_match()], BASE, ADAPTER))
    assert {name: (record.adapter.value, record.adapter.n) for name, record in found.items()} == {
        "exact_match": (0.75, 4),
        "exact_match[class: green]": (1.0, 2),
        "exact_match[class: none]": (0.0, 1),
        "exact_match[class: red]": (1.0, 1),
        "exact_match[scope: in]": (1.0, 3),
        "exact_match[scope: out]": (0.0, 1),
    }


def test_a_column_may_have_a_colon_in_its_name() -> None:
    rows = [row.model_copy(update={"fields": {"at: place": "a: b"}}) for row in ROWS]
    answered = items_of(rows, ["red", "green", "green", "red"])
    record = by_key(figures_of([exact_match()], items_of(rows, ["red"] * 4), answered))["exact_match[at: place: a: b]"]
    assert record.difference is not None
    assert record.difference.n == 4


def test_a_metric_without_any_score_is_still_a_record_that_can_be_read_again() -> None:
    record = figure_record(numeric(0, 0), BASE, ADAPTER)
    assert (record.adapter.n, record.num_left_out, record.base, record.difference) == (0, 4, None, None)
    assert FigureRecord.model_validate_json(record.model_dump_json()) == record
    unbounded = figure_record(length(), [], [])
    assert FigureRecord.model_validate_json(unbounded.model_dump_json()) == unbounded


def test_other_kinds_are_named_by_their_kind() -> None:
    record = figure_record(exact_match(), BASE, ADAPTER, kind="robustness", part="typos")
    assert record.key == "robustness[typos]"
