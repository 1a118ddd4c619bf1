from datetime import date
from pathlib import Path

import pytest

from config.dataset import DatasetRow, conversation
from config.domain import DomainConfig
from tests.tiny_llama import RENDERED_AT, tiny_tokenizer
from tests.train.data.report.built import domain_of
from train.data.report.encoding import first_learnt, learnt_of, times_of
from train.errors import DataError

TODAY = date(2026, 11, 29)


def dropping(**recipe: object) -> DomainConfig:
    """Rows that are too long are dropped."""
    config = domain_of(Path("rows.jsonl"), recipe={"max_length": 100, **recipe})
    return config.model_copy(update={"data": config.data.model_copy(update={"cut_long_inputs": "drop"})})


def row(config: DomainConfig, question: str) -> DatasetRow:
    return DatasetRow(messages=conversation(config.chat, question, "Yes."), input=question, output="Yes.")


def test_rows_that_are_not_trained_on_are_not_shown_as_learnt():
    config = dropping()
    rows = [row(config, "long " * 40), row(config, "a?"), row(config, "b?"), row(config, "c?")]
    shown = first_learnt(tiny_tokenizer(), rows, config, [RENDERED_AT] * 4, 2)
    assert [each.spans[0].text.partition("user\n")[2][:2] for each in shown] == ["a?", "b?"]


def test_a_dropped_row_that_was_asked_for_says_why():
    config = dropping()
    with pytest.raises(DataError, match="max_length"):
        learnt_of(tiny_tokenizer(), [row(config, "long " * 40)], config, [RENDERED_AT])


def test_each_row_has_the_time_that_its_training_has():
    config = dropping(template_date="varied")
    assert times_of(config, 3, "train", TODAY) == times_of(config, 9, "train", TODAY)[:3]
    assert len(set(times_of(config, 9, "train", TODAY))) == 9
    assert len(set(times_of(config, 9, "test", TODAY))) == 1
