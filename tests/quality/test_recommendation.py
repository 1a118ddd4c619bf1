"""The rules of `lorikeet eval decide`, one test each."""

import pytest

from quality.recommendation import Advantage, AnswerOption, MoreRows, recommend

BASE = AnswerOption("base", False, 0, 0.02, 40)
NEAREST = AnswerOption("base with 5 nearest examples", False, 4, 0.55, 200)
ADAPTER = AnswerOption("adapter", True, 10, 0.57, 50)


def within(half: float):
    """Differences of the values, with intervals of this half width."""

    def compare(first: AnswerOption, second: AnswerOption) -> Advantage:
        value = second.value - first.value
        return Advantage(value, value - half, value + half)

    return compare


def changed(option: AnswerOption, **changes: object) -> AnswerOption:
    return AnswerOption(**(vars(option) | changes))


def advice(*options: AnswerOption, half: float = 0.1, more_rows: MoreRows | None = None):
    return recommend(options, within(half), metric="exact_match", num_items=100, more_rows=more_rows)


def test_a_significant_gain_chooses_the_adapter() -> None:
    found = advice(BASE, NEAREST, changed(ADAPTER, value=0.8))
    assert found.choice == "adapter"
    assert found.summary == "Fine-tune: use adapter."
    assert "+0.250 (+0.150 to +0.350)" in found.reason
    assert any("more than +0.15" in line for line in found.would_change)


def test_without_a_gain_retrieval_needs_no_training() -> None:
    found = advice(BASE, NEAREST, changed(ADAPTER, seconds_per_1000=150))
    assert found.choice == NEAREST.name
    assert "100 questions cannot tell from none" in found.reason
    assert "1.3" in found.reason


def test_without_a_gain_much_shorter_prompts_choose_the_adapter() -> None:
    found = advice(BASE, NEAREST, ADAPTER)
    assert found.choice == "adapter"
    assert "4.0 times as cheaply" in found.reason


def test_a_significant_loss_chooses_prompting_whatever_the_cost() -> None:
    found = advice(BASE, changed(NEAREST, value=0.9), ADAPTER)
    assert found.choice == NEAREST.name
    assert any("4.0 times as cheap" in line for line in found.would_change)


def test_the_base_alone_is_enough_where_nothing_is_better() -> None:
    found = advice(changed(BASE, value=0.55), NEAREST, changed(ADAPTER, seconds_per_1000=45))
    assert found.choice == "base"


def test_of_equally_good_ways_the_cheapest_is_the_candidate() -> None:
    constrained = changed(ADAPTER, name="adapter, constrained", effort=11, seconds_per_1000=60, value=0.6)
    assert advice(BASE, constrained, ADAPTER).choice == "adapter"


def test_the_simplest_of_ways_without_times_is_the_candidate() -> None:
    untimed = [changed(option, seconds_per_1000=None) for option in (NEAREST, changed(BASE, value=0.54))]
    assert advice(*untimed).choice == "base"


def test_an_adapter_without_times_asks_for_them() -> None:
    found = advice(BASE, NEAREST, changed(ADAPTER, value=0.9, seconds_per_1000=None))
    assert found.choice == "adapter"
    assert any("serve it" in line for line in found.would_change)


def test_without_an_adapter_prompting_is_compared_alone() -> None:
    found = advice(BASE, NEAREST)
    assert found.choice == NEAREST.name
    assert "not measured" in found.summary


@pytest.mark.parametrize(("ci_high", "words"), [(0.1, "would not reach"), (0.5, "may pass")])
def test_more_rows_say_whether_they_would_change_it(ci_high: float, words: str) -> None:
    more = MoreRows(2, 0.05, 0.02, ci_high)
    found = advice(BASE, changed(NEAREST, value=0.9), ADAPTER, more_rows=more)
    assert any(words in line and f"+0.02 to {ci_high:+.2f}" in line for line in found.would_change)


def test_undecided_says_how_many_questions_would_decide() -> None:
    found = advice(BASE, changed(NEAREST, seconds_per_1000=60), ADAPTER)
    assert any("2,500 held-out questions" in line for line in found.would_change)


def test_only_trained_ways_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="without training"):
        advice(ADAPTER)
