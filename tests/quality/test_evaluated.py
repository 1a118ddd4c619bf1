"""`evaluation.jsonl`: what is written is read again, within its bounds."""

import logging
from pathlib import Path

import pytest

from quality.evaluated import (
    EVALUATION_FILE,
    MAX_TEXT_CHARS,
    EvaluatedItem,
    InvalidEvaluationError,
    ScoredPair,
    cut,
    read_evaluated,
    write_evaluated,
)

ITEM = EvaluatedItem(
    id="1: tickets.csv:2",
    question="Where is\u2028my parcel?\r\n",
    expected="shipping",
    base="",
    adapter="shipping",
    slices={"scope": "in"},
    scores={"exact_match": ScoredPair(base=0.0, adapter=1.0), "numeric": ScoredPair(base=None, adapter=None)},
    left_out={"numeric": "the expected answer has no number"},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_evaluated([ITEM, ITEM], tmp_path)
    assert read_evaluated(tmp_path) == (ITEM, ITEM)
    assert (tmp_path / EVALUATION_FILE).stat().st_mode & 0o777 == 0o600


def test_a_folder_without_the_file_has_no_items(tmp_path: Path) -> None:
    assert read_evaluated(tmp_path) == ()


def test_the_file_stays_within_its_limit_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_evaluated([ITEM] * 9, tmp_path, max_bytes=1_000)
    assert (tmp_path / EVALUATION_FILE).stat().st_size <= 1_000
    assert len(read_evaluated(tmp_path)) == 3
    assert "holds 3 of 9 questions: the limit is 1000 bytes" in caplog.text


def test_a_long_text_is_cut() -> None:
    assert cut("a" * MAX_TEXT_CHARS) == "a" * MAX_TEXT_CHARS
    assert cut("a" * (MAX_TEXT_CHARS + 1)) == "a" * (MAX_TEXT_CHARS - 1) + "…"
    assert cut("half \ud83c") == "half ?"


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', '{"id": "1", "scores": {"a": {"base": NaN}}}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / EVALUATION_FILE).write_text(f"{ITEM.model_dump_json()}\n{line}\n")
    with pytest.raises(InvalidEvaluationError, match=r"evaluation\.jsonl of .* is broken in line 2"):
        read_evaluated(tmp_path)
