"""Rows that cleaning takes for copies of the held-out ones: a job is told so, and trained all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from config.dataset import read_dataset
from config.home import Home
from train.errors import NothingLeftError
from train.jobs.data import usable_values

WORDS = [
    "please",
    "tell",
    "me",
    "in",
    "one",
    "short",
    "word",
    "which",
    "colour",
    "the",
    "sea",
    "usually",
    "has",
    "when",
]
COPIES = [" ".join([*WORDS[:n], WORDS[n].upper(), *WORDS[n + 1 :], "you look"]) for n in range(12)]
"""One question, with another word in capitals each."""
THINGS = ("fern", "rose", "lawn", "sky", "ruby", "leaf", "sea", "moss", "jay", "beet", "iris", "pine")


def values_of(folder: Path, questions: list[str], **data: Any) -> dict[str, Any]:
    path = folder / "training.jsonl"
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "blue"}]} for q in questions]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {"source": "files", "path": str(path)} | data
    return {"name": "colours", "description": "", "base": "none", "data": settings, "chat": {"system": "Colour?"}}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "var")


def test_rows_that_are_all_copies_are_trained_on_with_a_warning(home: Home, tmp_path: Path) -> None:
    values, warning = usable_values("ftjob-1", values_of(tmp_path, COPIES), home)
    assert warning.startswith("All training rows are nearly copies of held-out rows.")
    assert values["data"]["cleaning"] == {"contamination": "keep"}
    assert read_dataset(home.datasets / "colours").num_train == 9


def test_other_rows_are_cleaned_as_ever(home: Home, tmp_path: Path) -> None:
    given = values_of(tmp_path, [f"{thing} {thing[::-1] * 5} {index}" for index, thing in enumerate(THINGS)])
    assert usable_values("ftjob-1", given, home) == (given, "")


def test_what_the_client_sets_is_kept(home: Home, tmp_path: Path) -> None:
    given = values_of(tmp_path, COPIES, cleaning={"contamination": "drop"})
    with pytest.raises(NothingLeftError):
        usable_values("ftjob-1", given, home)
