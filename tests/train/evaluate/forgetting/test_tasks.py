import re

import pytest

from train.evaluate.forgetting.arithmetic import EXAMPLES, arithmetic_questions
from train.evaluate.forgetting.cloze import NUM_CHOICES, cloze_choices
from train.evaluate.forgetting.instructions import PLAIN_ANSWER, Instruction, instructions
from train.evaluate.forgetting.texts import TEXTS

EVERY_INSTRUCTION = instructions(100)


def kind(beginning: str) -> Instruction:
    return next(one for one in EVERY_INSTRUCTION if re.match(beginning, one.text))


def test_arithmetic_has_the_right_answers() -> None:
    lines = [f"{question} {answer}" for question, answer in arithmetic_questions(500)]
    for line in (*lines, *EXAMPLES.splitlines()):
        left, operation, right, answer = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
        assert {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operation](int(left), int(right)) == int(answer)


def test_questions_differ_and_are_no_example() -> None:
    questions = [question for question, _ in arithmetic_questions(500)]
    assert len(set(questions)) == len(questions) == 60
    assert not any(f"{question} " in EXAMPLES for question in questions)
    assert len({choice.beginning for choice in cloze_choices(999)}) == len(cloze_choices(999)) > 80
    assert len({one.text for one in EVERY_INSTRUCTION}) == len(EVERY_INSTRUCTION)


@pytest.mark.parametrize("make", [arithmetic_questions, cloze_choices], ids=["arithmetic", "cloze"])
def test_fewer_questions_are_the_first_ones(make: object) -> None:
    assert make(7) == make(40)[:7] == make(40)[:7]  # type: ignore[operator]


def test_choices_are_different_words_of_one_kind() -> None:
    for choice in cloze_choices(999):
        assert len(set(choice.words)) == NUM_CHOICES
        assert not any(f" {word}" in choice.beginning for word in choice.words[1:])


@pytest.mark.parametrize(
    ("beginning", "right", "wrong"),
    [
        ("Write one sentence about .* capital letters only", "TEA IS HOT.", "Tea is hot."),
        ("Write one sentence about .* lower case", "tea is hot.", "Tea is hot."),
        ("Write one sentence about .* lower case", "tea", "42"),
        ("Name 2 words about .* JSON", '["a", "b"]', '["a", 2]'),
        ("Name 2 words about .* JSON", ' ["a", "b"]\n', "a, b"),
        ("Name 2 words about .* bullet", "* a\n* b", "* a\n* b\n* c"),
    ],
)
def test_a_rule_tells_answers_apart(beginning: str, right: str, wrong: str) -> None:
    rule = kind(beginning).is_followed
    assert rule(right)
    assert not rule(wrong)


def test_rules_with_words_want_these_words() -> None:
    described = kind("Describe")
    number = int(re.search(r"exactly (\d)", described.text).group(1))  # type: ignore[union-attr]
    assert described.is_followed(" ".join(["word"] * number) + ".")
    assert not described.is_followed(" ".join(["word"] * (number + 1)))
    finished = kind("Write one short sentence")
    ending = finished.text.rpartition(": ")[2]
    assert finished.is_followed(f"It is old. {ending}\n")
    assert not finished.is_followed("It is old.")
    single = kind("Answer with the single word")
    word = single.text.split('"')[1]
    assert single.is_followed(f"{word.title()}.")
    assert not single.is_followed(f"The word is {word}.")
    contained = kind("Write one sentence about .* contains")
    word = contained.text.split('"')[1]
    assert contained.is_followed(f"A {word.upper()} it is.")
    assert not contained.is_followed(f"{word}s")


def test_an_ordinary_answer_follows_no_instruction() -> None:
    assert not any(one.is_followed(PLAIN_ANSWER) for one in EVERY_INSTRUCTION)


def test_texts_are_long_enough_for_an_interval() -> None:
    assert all(len(text) > 800 for text in TEXTS.values())
