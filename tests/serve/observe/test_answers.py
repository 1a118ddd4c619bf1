"""What a version's answers are held against."""

import logging
from pathlib import Path

import pytest

from adapters.store.manifest import QualityRules
from adapters.store.store import AdapterStore
from serve.observe.answers import KnownAnswers
from tests.generations import generation
from tests.peft_folders import draft_for


def published(store: AdapterStore, folder: Path, pattern: str) -> KnownAnswers:
    answers = KnownAnswers()
    answers.learn(store.publish(folder, draft_for(folder, quality=QualityRules(answer_pattern=pattern))))
    return answers


def test_no_pattern_of_a_version_holds_up_the_server(store: AdapterStore, peft_folder: Path) -> None:
    """With Python's `re` this would go on for years."""
    answers = published(store, peft_folder, r"(\w+\s?)+")
    record = generation("medical@1", texts=("a" * 1999 + "?", "two words"))
    assert answers.valid_format(record) == (False, True)


def test_a_version_from_before_is_loaded_whatever_its_pattern(
    store: AdapterStore, peft_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answers = published(store, peft_folder, "(?=a)a+")
    assert answers.valid_format(generation("medical@1")) == ()
    assert "medical@1's answers is not checked" in caplog.text
