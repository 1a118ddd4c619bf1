"""What each perturbation does to a text, and what it leaves alone."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.robustness.additions import with_distractors, with_instruction, with_long_context
from quality.robustness.spelling import with_casing, with_digits, with_typos, with_white_space
from quality.robustness.texts import CONTRADICTIONS, INJECTIONS
from quality.robustness.wording import BUILT_IN, with_synonyms
from quality.robustness.words import kept_words, letters_of

NONE: frozenset[str] = frozenset()
SEEDS = range(20)


@given(st.text(min_size=1, max_size=80), st.integers(0, 9))
def test_typos_leave_what_is_no_letter_in_order(text: str, seed: int) -> None:
    def others(value: str) -> str:
        return "".join(char for char in value if not char.isalpha())

    ascii_text = text.encode("ascii", "ignore").decode()
    assert others(with_typos(ascii_text, NONE, 0.2, Random(seed))) == others(ascii_text)


@pytest.mark.parametrize("text", ["pneumonia", "Straße", "пневмония", "鼻炎患者", "मूत्राशय", "التهاب", "ñandú"])
def test_a_word_of_any_script_gets_a_typo(text: str) -> None:
    typed = {with_typos(text, NONE, 0.01, Random(seed)) for seed in SEEDS}
    assert text not in typed
    assert len(typed) > 3


def test_marks_stay_on_their_letters() -> None:
    assert letters_of("किताब") == ["कि", "ता", "ब"]
    assert letters_of("n\u0303a") == ["n\u0303", "a"]


def test_more_typos_at_a_higher_rate() -> None:
    text = "several irrelevant sentences about nothing special " * 4

    def changed(rate: float) -> int:
        typed = with_typos(text, NONE, rate, Random(1)).split()
        return sum(one != other for one, other in zip(typed, text.split(), strict=True))

    assert 1 == changed(0.001) < changed(0.05) < changed(0.5)


@pytest.mark.parametrize("kept", ["bob@example.org", "https://a.org/path", "C:\\temp", "A4-77", "x_y", "f(a)", "12"])
@pytest.mark.parametrize("seed", range(5))
def test_addresses_numbers_and_code_stay(kept: str, seed: int) -> None:
    text = f"please forward {kept} to everybody"
    draw = Random(seed)
    assert kept in with_typos(text, NONE, 1.0, draw).split()
    assert kept in with_casing(text, NONE, draw)[1].split()
    assert kept in with_synonyms(text, NONE, {"path": ["way"]}, draw).split()


@pytest.mark.parametrize("seed", range(5))
def test_what_the_answer_repeats_stays(seed: int) -> None:
    kept, draw = kept_words('{"drug": "Ibuprofen", "mg": 400}'), Random(seed)
    assert "ibuprofen" in with_typos("took ibuprofen yesterday", kept, 1.0, draw)
    assert "ibuprofen" in with_casing("Took ibuprofen yesterday", kept, draw)[1]
    assert "ibuprofen" in with_synonyms("took ibuprofen", kept, {"ibuprofen": ["aspirin"]}, draw)
    assert "400" in with_digits("400 mg for 3 days", kept, draw)[1]
    assert "3" not in with_digits("400 mg for 3 days", kept, draw)[1]


def test_casing_has_three_kinds_and_one_that_changes_the_text() -> None:
    found = {with_casing("Acute Bronchitis", NONE, Random(seed)) for seed in SEEDS}
    assert {variant for variant, _ in found} == {"upper", "lower", "random"}
    assert {text.lower() for _, text in found} == {"acute bronchitis"}
    assert all(with_casing("COPD", NONE, Random(seed))[1] != "COPD" for seed in SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_white_space_changes_nothing_else(seed: int) -> None:
    text = "def f(x):\n    return  x\nplease explain"
    variant, spaced = with_white_space(text, Random(seed))
    assert spaced != text
    assert spaced.split() == text.split()
    assert "\n    return" in spaced or variant != "padded"


@pytest.mark.parametrize("seed", SEEDS)
def test_digits_keep_their_value(seed: int) -> None:
    variant, text = with_digits("C3: pay 1250 by 7.03.", NONE, Random(seed))
    assert variant in ("arabic", "persian", "devanagari", "bengali", "fullwidth")
    assert "".join(char for char in text if char in "0123456789") == "3"  # part of a name
    assert "".join(str(int(char)) if char.isdigit() else char for char in text) == "C3: pay 1250 by 7.03."


def test_synonyms_replace_whole_words_in_their_case() -> None:
    def replaced(text: str, **own: list[str]) -> str:
        return with_synonyms(text, NONE, own, Random(0))

    assert replaced("Unspecified errors, with an Errorist") == "Not specified mistakes, together with an Errorist"
    assert replaced("the with-profits fund") == "the with-profits fund"
    assert replaced("the invoice", invoice=["bill"]) == "the bill"
    assert replaced("送货问题", 送货=["配送"]) == "配送问题"
    assert all(word == word.casefold() for word in BUILT_IN)


@pytest.mark.parametrize("seed", range(5))
def test_additions_keep_the_question_whole(seed: int) -> None:
    question, draw = "Which chapter?\nOtitis", Random(seed)
    texts = [with_distractors(question, draw)[1], with_long_context(question, 50)]
    texts += [with_instruction(question, instructions, draw)[1] for instructions in (INJECTIONS, CONTRADICTIONS)]
    assert all(question in text and len(text) > len(question) for text in texts)


def test_a_long_context_has_the_wanted_words_and_begins_alike() -> None:
    one, other = with_long_context("short", 2000), with_long_context("a longer question", 2000)
    assert len(one.split()) == len(other.split()) == 2000
    assert one[:5000] == other[:5000]
    assert with_long_context("three words here", 3) == "three words here"
