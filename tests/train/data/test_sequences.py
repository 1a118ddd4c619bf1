"""Rows to the sequences that are trained on."""

from typing import Any

import pytest

from config.dataset import DatasetRow, Message, conversation, full_prompt
from config.domain import DomainConfig
from config.objective import SftObjective
from config.rows import PreferenceRow
from tests.tiny_llama import CHAT_TEMPLATE, RENDERED_AT, tiny_tokenizer
from train.data.encode import Encoded, encode
from train.data.lengths import TooLongError
from train.data.sequences import check_held_out, encode_answers, encode_row, encode_rows
from train.errors import DataError

TOKENIZER = tiny_tokenizer()


def domain(max_length: int = 120, **data: Any) -> DomainConfig:
    return DomainConfig.model_validate(
        {
            "name": "colours",
            "description": "Names the colour.",
            "base": "tiny",
            "data": {"path": "colours.jsonl", **data},
            "chat": {"system": "Colour?", "user": "Item: {input} Its colour?"},
            "recipe": {"max_length": max_length},
        }
    )


def row(text: str, answer: str) -> DatasetRow:
    return DatasetRow(messages=conversation(domain().chat, text, answer), input=text, output=answer)


def text_of(sequence: Encoded) -> str:
    return str(TOKENIZER.decode(sequence.input_ids))


def test_a_row_that_fits_is_encoded_as_it_is() -> None:
    assert encode_row(TOKENIZER, row("rose", "red"), domain(), RENDERED_AT) == [
        encode(TOKENIZER, row("rose", "red").messages, RENDERED_AT)
    ]


@pytest.mark.parametrize("mode", ["left", "middle", "right"])
def test_a_long_row_loses_question_and_never_its_frame_or_answer(mode: str) -> None:
    long = row(("rose " * 60).strip(), "red")
    (sequence,) = encode_row(TOKENIZER, long, domain(cut_long_inputs=mode), RENDERED_AT)
    assert (len(sequence) <= 120, sequence.is_cut) == (True, True)
    assert "<|im_start|>user\nItem: " in text_of(sequence)
    assert " Its colour?<|im_end|>" in text_of(sequence)
    assert text_of(sequence).endswith("red<|im_end|>")


def test_an_answer_that_cannot_fit_is_refused() -> None:
    with pytest.raises(TooLongError, match=r"`recipe.max_length` is 60"):
        encode_row(TOKENIZER, row("rose", "red " * 20), domain(60), RENDERED_AT)


def test_all_faulty_rows_are_told_at_once() -> None:
    rows = [row("rose", "red " * 40), row("grass", "green"), row("sky", "blue " * 40)]
    with pytest.raises(DataError, match=r"\(2\): row 1 has 2\d+ tokens.*; row 3 has"):
        encode_rows(TOKENIZER, rows, domain(), [RENDERED_AT] * 3)


def test_held_out_rows_are_checked_before_training() -> None:
    tokenizer = tiny_tokenizer("{{ raise_exception('no sky') if 'sky' in messages[1].content }}" + CHAT_TEMPLATE)
    check_held_out(tokenizer, [row("rose", "red " * 60)], domain(), RENDERED_AT)
    with pytest.raises(DataError, match=r"\(1\): held-out row 2 The base's chat template rejects.*no sky"):
        check_held_out(tokenizer, [row("rose", "red"), row("sky", "blue")], domain(), RENDERED_AT)


def test_a_row_can_become_several_sequences() -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("m.content", "(m.content if loop.last else m.content[:4])"))
    turns = [Message(role=role, content=text) for role, text in [("user", "rose"), ("assistant", "scarlet")] * 2]
    both = DatasetRow(messages=tuple(turns), input="rose", output="scarlet")
    assert len(encode_rows(tokenizer, [both, both], domain(), [RENDERED_AT] * 2)) == 4


def test_the_loss_can_be_on_the_last_turn_alone() -> None:
    turns = [("system", "Colour?"), ("user", "rose"), ("assistant", "red"), ("user", "sky"), ("assistant", "blue")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    chat = DatasetRow(messages=messages, input="sky", output="blue")
    last = domain().model_copy(update={"objective": SftObjective(loss_on="last")})
    (both,), (one,) = (encode_row(TOKENIZER, chat, config, RENDERED_AT) for config in (domain(), last))
    assert (len(both.learnt), len(one.learnt)) == (2, 1)
    assert one.input_ids == both.input_ids


def test_chosen_and_rejected_share_their_prompt_when_it_is_cut() -> None:
    asked = full_prompt(domain().chat, (Message(role="user", content="rose " * 60),))
    answers = {
        side: (Message(role="assistant", content=text),) for side, text in (("chosen", "red"), ("rejected", "a" * 9))
    }
    pair = PreferenceRow(prompt=asked, input="rose " * 60, **answers)
    chosen, rejected = encode_answers(TOKENIZER, pair, domain(), RENDERED_AT)
    assert chosen.prompt_ids == rejected.prompt_ids
    assert len(chosen) < len(rejected) <= 120
