from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from quality.metrics.answers import exact_match, json_fields, token_f1
from quality.metrics.classes import MacroF1
from quality.metrics.figures import difference_of, figure_of
from quality.metrics.item import Item, Metric
from quality.metrics.texts import bleu


def items(answers: Sequence[str], expected: str = "yes", **fields: object) -> list[Item]:
    return [
        Item(id=str(n), question="?", expected=expected, answer=answer, **fields)  # type: ignore[arg-type]
        for n, answer in enumerate(answers)
    ]


def test_a_share_has_wilsons_interval() -> None:
    figure = figure_of(exact_match(), items(["yes"] * 8 + ["no"] * 2))
    assert (figure.value, figure.n) == (0.8, 10)
    assert figure.ci_low == pytest.approx(0.4902, abs=1e-4)
    assert figure.ci_high == pytest.approx(0.9433, abs=1e-4)


def test_slices_have_figures_of_their_own() -> None:
    asked = [
        replace(item, slices={"team": "red" if n < 3 else "blue"}) for n, item in enumerate(items(["yes"] * 3 + ["no"]))
    ]
    parts = figure_of(exact_match(), asked).by_slice
    assert {name: (part.value, part.n) for name, part in parts.items()} == {"team: red": (1, 3), "team: blue": (0, 1)}


def test_items_without_a_score_are_named_and_the_rest_counts() -> None:
    asked = [*items(["{}"], expected="{}"), replace(items(["{}"], expected="text")[0], id="bad")]
    figure = figure_of(json_fields(), asked)
    assert (figure.value, figure.n) == (1, 1)
    assert figure.left_out == (("bad", "the expected answer is not JSON"),)


def test_a_figure_of_nothing_says_nothing() -> None:
    figure = figure_of(json_fields(), items(["{}"], expected="text"))
    assert (figure.n, figure.ci_low, figure.ci_high) == (0, 0, 1)


def test_equal_scores_are_not_certain() -> None:
    figure = figure_of(token_f1(), items(["yes"] * 20))
    assert figure.value == 1
    assert figure.ci_low < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("metric", [exact_match(), token_f1(), MacroF1(), bleu()], ids=lambda metric: metric.name)
def test_the_better_answers_win_by_item(metric: Metric) -> None:
    expected = "yes it is so indeed"
    worse = items(["no it is not so"] * 11 + [expected] * 4, expected)
    better = items(["no it is not so"] + [expected] * 14, expected)
    found = difference_of(metric, worse, better)
    assert found.value > 0
    assert found.ci_low > 0
    assert found.p < 0.01
    assert found.only_first == ()
    assert len(found.only_second) == 10


def test_answers_to_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same items"):
        difference_of(exact_match(), items(["a"]), items(["a", "b"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "mean"])
def test_paired_intervals_hold_the_truth_in_95_of_100(kind: str) -> None:
    """1,000 simulated evaluations of 150 items; the truth is a difference of 0.1."""
    rng = np.random.default_rng(5)
    held = 0
    runs = 1000
    metric = exact_match() if kind == "share" else token_f1()
    for _ in range(runs):
        hard = rng.random(150)
        if kind == "share":
            first, second = hard < 0.5, (hard < 0.5) ^ (rng.random(150) < np.where(hard < 0.5, 0.1, 0.3))
            truth = 0.1
            answers = [["yes" if x else "no" for x in side] for side in (first, second)]
        else:
            # token F1 of k right words of 10: (k + k) / 20 = k / 10
            low, high = rng.binomial(10, 0.2 + 0.5 * hard), rng.binomial(10, 0.3 + 0.5 * hard)
            truth = 0.1
            answers = [[" ".join(["yes"] * k + [f"x{j}" for j in range(10 - k)]) for k in side] for side in (low, high)]
        expected = "yes" if kind == "share" else " ".join(["yes"] * 10)
        found = difference_of(metric, items(answers[0], expected), items(answers[1], expected))
        held += found.ci_low <= truth <= found.ci_high
    assert 0.93 <= held / runs <= 0.97
