from datetime import date
from pathlib import Path

import pytest

from config.dataset import DatasetRow, Message, conversation
from config.domain import DomainConfig
from config.rows import AnyRow, PreferenceRow, PromptRow, TextRow, UnpairedPreferenceRow
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


USER, GOOD, BAD = (
    (Message(role=role, content=text),)
    for role, text in (("user", "Colour?"), ("assistant", "red"), ("assistant", "no"))
)
ROWS: dict[str, tuple[AnyRow, list[tuple[str, str]]]] = {
    "preference": (
        PreferenceRow(prompt=USER, chosen=GOOD, rejected=BAD, input="Colour?"),
        [("packaged row, chosen", "red<|im_end|>"), ("packaged row, rejected", "no<|im_end|>")],
    ),
    "unpaired": (
        UnpairedPreferenceRow(prompt=USER, completion=BAD, label=False, input="Colour?"),
        [("packaged row, bad", "no<|im_end|>")],
    ),
    "prompt": (PromptRow(messages=USER, input="Colour?"), [("packaged row", "")]),
    "text": (TextRow(text="A rose is red."), [("packaged row", "A rose is red.<|im_end|>")]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_learnt_is_shown_of_every_type_of_row(kind):
    row, learnt = ROWS[kind]
    shown = learnt_of(tiny_tokenizer(), [row], domain_of(Path("rows.jsonl")), [RENDERED_AT])
    assert [(e.where, "".join(span.text for span in e.spans if span.is_learnt)) for e in shown] == learnt
