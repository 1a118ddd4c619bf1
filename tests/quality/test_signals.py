import random
from math import inf, nan

import pytest

from quality.scorers import AnswerFormat
from quality.signals import compression_ratio, is_refusal, mean_logprob, seq_rep, signals_of

CHAPTER = AnswerFormat({"type": "object", "required": ["chapter"]})
OUT_OF_SCOPE = '{"chapter": "out of scope"}'


def signals(text, **settings):
    return signals_of(text, **{"num_tokens": 12, "finish_reason": "stop", **settings})


def test_an_answer_is_described():
    seen = signals('{"chapter": "Neoplasms"}', token_logprobs=[-0.5, -1.5], answer_format=CHAPTER, refusal=OUT_OF_SCOPE)
    assert (seen.num_chars, seen.num_words, seen.num_tokens, seen.finish_reason) == (24, 2, 12, "stop")
    assert (seen.mean_logprob, seen.is_valid_format, seen.is_refusal) == (-1.0, True, False)


def test_what_the_domain_does_not_define_is_not_judged():
    seen = signals("Aye.")
    assert seen.is_valid_format is None
    assert seen.mean_logprob is None


def test_an_answer_cut_short_is_no_valid_json():
    seen = signals('{"chapter": "Neo', finish_reason="length", answer_format=CHAPTER)
    assert (seen.is_valid_format, seen.finish_reason) == (False, "length")


def test_an_empty_answer_has_no_repetition():
    seen = signals("", num_tokens=0, answer_format=CHAPTER)
    assert (seen.seq_rep_4, seen.compression_ratio, seen.is_valid_format) == (0.0, 0.0, False)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m very sorry.",
        "I cannot answer this question.",
        "  Unfortunately, I am unable to say.",
        "As an AI language model, I have no opinion.",
        "“Sorry, no.”",
        "I apologise, but no.",
    ],
)
def test_a_refusal_is_known_by_how_it_opens(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    ["", "The patient cannot walk.", "Sorrel is a plant.", "I can help.", "Neoplasms. I cannot say more."],
)
def test_an_answer_that_only_speaks_of_such_things_is_none(text):
    assert not is_refusal(text)


def test_the_domains_agreed_refusal_counts_in_any_spacing():
    assert signals('{"chapter":"out of scope"}', refusal=OUT_OF_SCOPE).is_refusal


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["a", "b", "c"], 0.0),
        (["a", "b", "c", "d", "e"], 0.0),
        (["a", "b", "c", "d", "a", "b", "c", "d"], 0.2),  # one of five 4-grams came before
        (["a"] * 104, 1 - 1 / 101),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(words, share):
    assert seq_rep(words, 4) == pytest.approx(share)


def test_a_loop_without_words_shows_in_the_compression_ratio():
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=400))
    assert compression_ratio("ab" * 200) > 2.4 > compression_ratio(letters)


def test_text_that_is_no_unicode_is_measured():
    assert compression_ratio("\ud800") > 0


@pytest.mark.parametrize(
    ("logprobs", "mean"), [([], None), ([nan, -inf], None), ([-1.0, nan, -3.0], -2.0), ([0.0], 0.0)]
)
def test_mean_logprob_is_over_the_finite_ones(logprobs, mean):
    assert mean_logprob(logprobs) == mean


@pytest.mark.parametrize(
    ("text", "is_repetitive"),
    [
        ("the cat sat on the mat and the dog sat on the rug", False),
        ('{"chapter": "Neoplasms", "block": "C00-C97", "code": "C34.1"}', False),
        ("I am a model. " * 20, True),
        ("喵" * 200, True),
        ("", False),
    ],
)
def test_an_answer_that_goes_round_in_circles_is_repetitive(text: str, is_repetitive: bool) -> None:
    assert signals_of(text, num_tokens=1, finish_reason="length").is_repetitive is is_repetitive
