"""Rows over `max_length`: where their questions are cut, and which rows are refused or dropped."""

from typing import Any

import pytest

from config.data import CutMode
from config.dataset import Message, Origin
from config.domain import DomainConfig
from tests.tiny_llama import CHAT_TEMPLATE, RENDERED_AT, tiny_tokenizer
from train.data.examples import Example
from train.data.lengths import TooLongError, check_lengths, cut_text, encoding_error, fit_example, fit_texts
from train.errors import DataError

TOKENIZER = tiny_tokenizer()
LONG = "first " + "middle " * 60 + "last"


def domain(max_length: int = 120, cut: CutMode = "middle") -> DomainConfig:
    return DomainConfig.model_validate(
        {
            "name": "colours",
            "description": "Names the colour.",
            "base": "tiny",
            "data": {"path": "colours.jsonl", "cut_long_inputs": cut},
            "chat": {"system": "Colour?", "user": "Item: {input} Its colour?"},
            "recipe": {"max_length": max_length},
        }
    )


def example(question: str, answer: str = "red", line: int = 1, **fields: Any) -> Example:
    return Example(
        "prompt_completion",
        prompt=(Message(role="user", content=question),),
        completion=(Message(role="assistant", content=answer),),
        origin=Origin(file="colours.jsonl", line=line),
        **fields,
    )


@pytest.mark.parametrize(("mode", "text"), [("left", "ijklmnop"), ("right", "abcdefgh"), ("middle", "a … op")])
def test_a_text_loses_the_part_that_the_setting_names(mode: CutMode, text: str) -> None:
    assert cut_text(TOKENIZER, "abcdefghijklmnop", 8, mode) == text


@pytest.mark.parametrize("mode", ["left", "right", "middle"])
def test_no_character_is_broken(mode: CutMode) -> None:
    text = "🌹é漢字ñ🏵️ünïcode"
    cut = {num_dropped: cut_text(TOKENIZER, text, num_dropped, mode) for num_dropped in range(1, 40)}
    assert {num_dropped: part for num_dropped, part in cut.items() if not set(part) <= set(text) | set(" …")} == {}


def test_the_beginning_and_the_end_of_a_question_survive() -> None:
    fitted = fit_example(example(LONG), domain(), TOKENIZER, RENDERED_AT)
    assert fitted.question.startswith("first mid")
    assert fitted.question.endswith("middle last")
    assert "…" in fitted.question
    assert fitted.answer == "red"


def test_a_row_that_training_cuts_is_listed_and_stays_whole() -> None:
    rows = [example("rose"), example(LONG, line=2)]
    result = check_lengths(rows, domain(), TOKENIZER, RENDERED_AT)
    (found,) = result.step.findings
    assert list(result.examples) == rows
    assert (str(found.origin), found.reason) == ("colours.jsonl line 2", "is cut to 120 tokens in training")


def test_what_fits_stays_as_it_is() -> None:
    rose = example("rose")
    assert check_lengths([rose], domain(), TOKENIZER, RENDERED_AT).examples == (rose,)


def test_long_rows_can_be_dropped() -> None:
    result = check_lengths([example(LONG), example("rose", line=2)], domain(cut="drop"), TOKENIZER, RENDERED_AT)
    assert [one.question for one in result.examples] == ["rose"]
    assert "tokens, but `recipe.max_length` is 120" in result.step.findings[0].reason


@pytest.mark.parametrize(
    ("row", "cut"),
    [(example(LONG), "error"), (example("rose", "red " * 60), "middle"), (example("rose", LONG), "left")],
)
def test_rows_that_may_not_be_cut_are_refused_with_their_line(row: Example, cut: CutMode) -> None:
    with pytest.raises(
        DataError, match=r"Rows that cannot be trained \(1\): colours.jsonl line 1 has \d+ tokens.*Raise it"
    ):
        check_lengths([row], domain(cut=cut), TOKENIZER, RENDERED_AT)


def test_the_longest_text_of_several_turns_is_cut() -> None:
    turns = (
        Message(role="user", content=LONG),
        Message(role="assistant", content="Which?"),
        Message(role="user", content="The first flower."),
    )
    row = Example("prompt_completion", prompt=turns, completion=(Message(role="assistant", content="red"),))
    fitted = fit_example(row, domain(200), TOKENIZER, RENDERED_AT)
    assert "…" in fitted.prompt[0].content
    assert fitted.prompt[1:] == turns[1:]


def test_both_answers_of_a_preference_must_fit() -> None:
    turn, answers = Message(role="user", content=LONG), ("red", "a very long answer that is worse")
    chosen, rejected = ((Message(role="assistant", content=text),) for text in answers)
    row = Example("preference", prompt=(turn,), chosen=chosen, rejected=rejected)
    fitted = fit_example(row, domain(), TOKENIZER, RENDERED_AT)
    shorter = fit_example(example(LONG), domain(), TOKENIZER, RENDERED_AT)
    assert len(fitted.question) < len(shorter.question)


def test_a_template_that_rejects_a_row_is_told_with_its_line() -> None:
    tokenizer = tiny_tokenizer("{{ raise_exception('no ' ~ messages[0].role) }}" + CHAT_TEMPLATE)
    with pytest.raises(DataError, match=r"colours.jsonl line 1 The base's chat template rejects.*no system"):
        check_lengths([example("rose")], domain(), tokenizer, RENDERED_AT)


def test_ten_of_many_faults_are_listed() -> None:
    message = str(encoding_error([(f"line {n}", TooLongError("is too long")) for n in range(1, 13)]))
    assert message.startswith("Rows that cannot be trained (12): line 1 is too long; ")
    assert "line 10 is too long; and 2 more." in message


def test_cutting_ends_where_no_text_is_left_to_cut() -> None:
    with pytest.raises(TooLongError, match="without the texts that may be cut"):
        fit_texts(TOKENIZER, [], lambda texts: fit_sequences(), 3, "middle")


def fit_sequences() -> list[Any]:
    return ["a sequence of more than three tokens"]
