"""Perturbed answers beside those to the same questions as they stand."""

from quality.metrics.answers import exact_match, length
from quality.metrics.item import Item
from quality.robustness.figures import perturbation_figure


def items(*answers: str) -> list[Item]:
    return [Item(id=str(n), question="?", expected="yes", answer=answer) for n, answer in enumerate(answers)]


def test_the_difference_is_paired_and_the_lost_are_named() -> None:
    found = perturbation_figure(exact_match(), items("yes", "no", "no", "yes"), items("yes", "yes", "yes", "no"))
    assert found.plain is not None
    assert found.difference is not None
    assert (found.figure.value, found.plain.value, found.difference.value) == (0.5, 0.75, -0.25)
    assert found.difference.ci_low < -0.25 < found.difference.ci_high
    assert set(found.worst) == {"1", "2"}


def test_other_questions_have_no_difference() -> None:
    found = perturbation_figure(exact_match(), items("yes", "no"), None)
    assert (found.plain, found.difference, found.worst) == (None, None, ("1",))


def test_the_longest_is_worst_where_less_is_better() -> None:
    assert perturbation_figure(length(), items("a", "a b c", ""), None).worst[0] == "1"
