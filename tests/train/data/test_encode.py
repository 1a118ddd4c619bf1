import pytest

from config.dataset import DatasetRow, conversation
from config.domain import ChatConfig
from tests.tiny_llama import RENDERED_AT, tiny_tokenizer
from train.data.encode import IGNORED, encode, encode_prompt, encode_row
from train.errors import DataError
from train.tables import render_example

CHAT = ChatConfig(system="Colour?", user="Item: {input}")


def row(text: str, answer: str) -> DatasetRow:
    return DatasetRow(messages=conversation(CHAT, text, answer), input=text, output=answer, in_scope=True)


def test_the_loss_covers_exactly_the_answer_and_its_end_token() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(tokenizer, row("a rose", "red").messages, RENDERED_AT)
    learnt = [token for token in encoded.labels if token != IGNORED]
    assert tokenizer.decode(learnt) == "red<|im_end|>"
    assert len(encoded.labels) == len(encoded.input_ids)


def test_the_prompt_is_what_a_server_makes_of_the_conversation() -> None:
    tokenizer = tiny_tokenizer()
    messages = row("a rose", "red").messages
    assert encode(tokenizer, messages, RENDERED_AT).prompt_ids == encode_prompt(tokenizer, messages[:-1], RENDERED_AT)
    prompt = tokenizer.decode(list(encode_prompt(tokenizer, messages[:-1], RENDERED_AT)))
    assert isinstance(prompt, str)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_template_without_an_end_token_gets_one() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m.content }}|{% endfor %}")
    assert encode(tokenizer, row("a rose", "red").messages, RENDERED_AT).answer_ids[-1] == tokenizer.eos_token_id


def test_a_long_example_loses_input_and_never_its_answer() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode_row(tokenizer, row("rose " * 60, "red"), CHAT, max_length=100, at=RENDERED_AT)
    assert len(encoded) <= 100
    assert encoded.is_cut
    assert tokenizer.decode(list(encoded.answer_ids)) == "red<|im_end|>"


def test_an_answer_that_cannot_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"`recipe.max_length` is 40"):
        encode_row(tiny_tokenizer(), row("rose", "red " * 20), CHAT, max_length=40, at=RENDERED_AT)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="renders the prompt differently when an answer follows"):
        encode(tokenizer, row("a rose", "red").messages, RENDERED_AT)


def test_data_show_colours_the_learnt_tokens() -> None:
    tokenizer = tiny_tokenizer()
    text = render_example(tokenizer, encode(tokenizer, row("a rose", "red").messages, RENDERED_AT))
    learnt = [text.plain[span.start : span.end] for span in text.spans if span.style == "bold green"]
    assert learnt == ["red<|im_end|>"]
