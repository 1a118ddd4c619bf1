"""Perturbed copies: seeded, each by itself, and sound for texts of any script, size and layout."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.robustness.change import ForeignQuestion, PerturbedQuestion, PlainQuestion
from quality.robustness.perturb import NOT_ASKED, PerturbedSet, perturb, rewritten
from quality.robustness.settings import PERTURBATIONS, PerturbationName, RobustnessConfig
from quality.robustness.texts import OUT_OF_SCOPE
from train.data.general import GENERAL_REQUESTS

QUESTIONS = [PlainQuestion(f"Please send order {n} with the large box", '{"kind": "order"}') for n in range(30)]
NEIGHBOURS = [ForeignQuestion(f"Shoe shop {n}", "finance") for n in range(40)]
REWRITTEN: tuple[PerturbationName, ...] = tuple(
    name for name in PERTURBATIONS if name not in ("no_system_prompt", "out_of_scope", "neighbouring_domain")
)


def perturbed(
    questions: list[PlainQuestion] | None = None, *, has_refusal: bool = True, **settings: Any
) -> PerturbedSet:
    chosen = RobustnessConfig.model_validate({"num_questions": 10} | settings)
    asked = QUESTIONS if questions is None else questions
    return perturb(asked, chosen, has_refusal=has_refusal, neighbours=NEIGHBOURS)


def copies(name: PerturbationName, text: str, expected: str = "yes", **settings: Any) -> list[PerturbedQuestion]:
    return list(perturbed([PlainQuestion(text, expected)], perturbations=[name], **settings).questions)


def of(found: PerturbedSet, name: PerturbationName) -> tuple[PerturbedQuestion, ...]:
    return tuple(found.questions[n] for n in found.positions(name))


def test_the_same_seed_gives_the_same_copies() -> None:
    assert perturbed() == perturbed()
    assert perturbed() != perturbed(seed=14)


def test_all_perturbations_change_the_same_questions() -> None:
    found = perturbed()
    assert len(found.drawn) == 10
    assert {q.perturbation for q in found.questions} == set(PERTURBATIONS)
    assert all(tuple(q.number for q in of(found, name)) == found.drawn for name in PERTURBATIONS)


def test_a_copy_does_not_depend_on_what_else_is_asked() -> None:
    alone = perturbed(perturbations=["digits"])
    assert alone.questions == of(perturbed(), "digits")
    drawn = [QUESTIONS[number] for number in alone.drawn]
    assert [q.text for q in of(perturbed(drawn), "digits")] == [q.text for q in alone.questions]


def test_no_more_questions_are_drawn_than_there_are() -> None:
    assert perturbed(num_questions=500).drawn == tuple(range(30))
    assert perturbed([]) == PerturbedSet((), ())


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_question_has_only_other_questions_and_no_system_prompt(text: str) -> None:
    found = perturbed([PlainQuestion(text, "yes")])
    assert [q.perturbation for q in found.questions] == ["no_system_prompt", "out_of_scope", "neighbouring_domain"]


def test_what_does_not_apply_is_not_asked() -> None:
    assert copies("digits", "no digits here") == []
    assert copies("casing", "请问今天几点开门？") == []
    assert copies("paraphrase", "zebra") == []
    assert copies("typos", "12 a@b.org") == []
    assert copies("long_context", "word " * 400) == []
    assert perturbed([PlainQuestion("a", "b", has_system_prompt=False)], perturbations=["no_system_prompt"]) == (
        PerturbedSet((0,), ())
    )
    assert set(NOT_ASKED) == set(PERTURBATIONS)


def test_without_a_refusal_no_other_question_has_an_answer() -> None:
    found = perturbed(has_refusal=False)
    assert not any(q.expects_refusal for q in found.questions)
    assert {q.perturbation for q in perturbed().questions if q.expects_refusal} == {
        "out_of_scope",
        "neighbouring_domain",
    }


def test_a_known_question_is_none_of_another_domain() -> None:
    known = [question.text.upper() for question in NEIGHBOURS[5:]]
    found = perturb(QUESTIONS, RobustnessConfig(), has_refusal=True, neighbours=NEIGHBOURS, known=known)
    assert {q.text for q in of(found, "neighbouring_domain")} == {question.text for question in NEIGHBOURS[:5]}
    assert {q.variant for q in of(found, "neighbouring_domain")} == {"finance"}


def test_questions_out_of_scope_are_none_that_adapters_are_trained_on() -> None:
    assert not {text.casefold() for text in OUT_OF_SCOPE} & {text.casefold() for text in GENERAL_REQUESTS}
    assert len(set(OUT_OF_SCOPE)) == 50


@pytest.mark.parametrize("name", REWRITTEN)
def test_json_stays_json_with_the_same_keys_and_numbers(name: PerturbationName) -> None:
    text = '{ "send": "Please send order 7 with care",\n  "n": 12.50, "tags": ["large box", ""], "no \\"x\\"": null }'
    (copy,) = copies(name, text)
    assert copy.text is not None
    before, after = json.loads(text), json.loads(copy.text)
    assert after != before or name == "white_space"
    assert list(after) == list(before)
    assert (after["n"], after['no "x"'], len(after["tags"])) == (12.5, None, 2)
    assert '"n": 12.50' in copy.text


def test_json_without_strings_has_no_copies() -> None:
    assert [q for name in REWRITTEN for q in copies(name, '{"a": [1, 2, {"b": true}]}')] == []


@pytest.mark.slow
@given(text=st.text(max_size=200), expected=st.text(max_size=30), seed=st.integers(0, 5))
def test_any_text_can_be_perturbed(text: str, expected: str, seed: int) -> None:
    settings = RobustnessConfig(seed=seed, long_context_words=30)
    for name in REWRITTEN:
        question = PlainQuestion(text, expected)
        assert rewritten(name, question, settings) == rewritten(name, question, settings)


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda part: st.lists(part)))
def test_any_json_stays_json(value: object) -> None:
    for name in REWRITTEN:
        _, text = rewritten(name, PlainQuestion(json.dumps([value]), "yes"), RobustnessConfig())
        json.loads(text)


@pytest.mark.parametrize("num_sentences", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_huge_question_keeps_its_size(name: PerturbationName, num_sentences: int) -> None:
    text = "Please send 12 boxes with large lids. " * num_sentences
    for copy in copies(name, text):
        assert copy.text is not None
        assert 0.9 * len(text) < len(copy.text) < 1.5 * len(text)
