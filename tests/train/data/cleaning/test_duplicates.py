from typing import Any

import pytest

from config.data import CleaningConfig
from config.dataset import Message
from tests.train.data.examples_of import questions, row, rows
from train.data.cleaning.duplicates import drop_exact_duplicates, drop_near_duplicates

# Pairs that any folding but NFC and outer white space takes for one text.
DIFFERENT = [
    ("3 + 4", "3 - 4"),
    ("C++", "C#"),
    ("-5 °C", "5 °C"),
    ("क", "कि"),
    ("मां", "माँ"),
    ("👍", "👎"),
    ("Polish", "polish"),
    ("No", "No!"),
    ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
    ("a  b", "a b"),
    ("a\nb", "a b"),
    ("naïve", "naive"),
    ("می‌خواهم", "میخواهم"),
]


@pytest.mark.parametrize("pair", DIFFERENT, ids=str)
def test_texts_that_differ_inside_are_both_kept(pair: tuple[str, str]) -> None:
    examples = rows([(pair[0], "yes"), (pair[1], "yes")])
    assert drop_exact_duplicates(examples, CleaningConfig()).examples == tuple(examples)


@pytest.mark.parametrize(("text", "copy"), [("caf\u00e9", "cafe\u0301"), ("tea", "  tea\n"), ("tea", "tea")])
def test_a_copy_is_dropped_with_both_rows_named(text: str, copy: str) -> None:
    result = drop_exact_duplicates(rows([(text, "yes"), (copy, "yes")]), CleaningConfig())
    assert questions(result.examples) == [text]
    assert [(f.origin and f.origin.line, f.other and f.other.line) for f in result.step.findings] == [(2, 1)]


def test_kept_duplicates_are_still_listed() -> None:
    result = drop_exact_duplicates(rows([("a", "b")] * 2), CleaningConfig(exact_duplicates="keep"))
    assert (len(result.examples), len(result.step.findings)) == (2, 1)


SYSTEM = (Message(role="system", content="In French."), Message(role="user", content="hello"))
TOOL = ({"type": "function", "function": {"name": "look_up", "parameters": {}}},)


@pytest.mark.parametrize("values", [{"prompt": SYSTEM}, {"tools": TOOL}, {"prompt": SYSTEM[1:] * 2}])
def test_context_tells_equal_questions_apart(values: dict[str, Any]) -> None:
    examples = [row("hello", "yes"), row("hello", "yes", 2, **values)]
    assert len(drop_exact_duplicates(examples, CleaningConfig()).examples) == 2


def test_a_written_row_wins_over_a_synthetic_copy() -> None:
    result = drop_exact_duplicates([row("a", is_synthetic=True), row("a", line=2)], CleaningConfig())
    assert [e.is_synthetic for e in result.examples] == [False]


def test_a_row_pinned_to_training_wins_over_its_copy() -> None:
    result = drop_exact_duplicates([row("a"), row("a", line=2, split="train")], CleaningConfig())
    assert [e.split for e in result.examples] == ["train"]


NEAR = "The parcel was delivered to the wrong house on Monday, please collect it"


@pytest.mark.parametrize(("answer", "num_kept"), [("collect", 1), ("refund", 2)])
def test_near_duplicates_need_the_same_answer(answer: str, num_kept: int) -> None:
    examples = rows([(NEAR, "collect"), (NEAR + " soon", answer)])
    result = drop_near_duplicates(examples, CleaningConfig(near_duplicates="drop"))
    assert len(result.examples) == num_kept


def test_near_duplicates_are_kept_by_default() -> None:
    examples = rows([(NEAR, "a"), (NEAR + " soon", "a")])
    assert drop_near_duplicates(examples, CleaningConfig()).examples == tuple(examples)


def test_near_duplicates_by_meaning_need_the_same_answer() -> None:
    pytest.importorskip("sentence_transformers")
    shop = [("When does the shop shut?", "hours"), ("What time does the store close?", "hours")]
    examples = rows([*shop, ("When will the shop be closed?", "other"), ("How do I bake bread?", "hours")])
    config = CleaningConfig(near_duplicates="drop", near_duplicate_cosine=0.7)
    result = drop_near_duplicates(examples, config)
    assert questions(result.examples) == [shop[0][0], "When will the shop be closed?", "How do I bake bread?"]
    assert [f"{f.origin} {f.reason} ({f.other})" for f in result.step.findings] == [
        "rows.jsonl line 2 by its meaning near an earlier row with the same answer (rows.jsonl line 1)"
    ]
