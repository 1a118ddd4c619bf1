"""Cohen's kappa: against published figures, at its edges, and how often its interval covers.

The figures of `SexualFun` are those that R's `vcd::Kappa` documents.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.agreement import agreement_of_scores, cohens_kappa, kappa_terms, krippendorffs_alpha, weights_of
from tests.examples import at_most
from tests.narrowing import not_none

MODERATE = at_most(100)

# Agresti (1990): 91 couples rate the same statement, 1 to 4; rows the husband's answers, columns the wife's.
SEXUAL_FUN = np.array([[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]])
LINEAR = 1 - abs(np.subtract.outer(np.arange(4), np.arange(4))) / 3

ratings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)
weights = st.sampled_from(["none", "quadratic"])


def pairs_of(counts):
    return [(i, j) for (i, j), count in np.ndenumerate(counts) for _ in range(count)]


@pytest.mark.parametrize(("table", "kappa", "error"), [(np.eye(4), 0.1293, 0.06860), (LINEAR, 0.2374, 0.07832)])
def test_kappa_and_its_standard_error_are_those_that_r_documents(table, kappa, error):
    n = SEXUAL_FUN.sum()
    observed, expected, variance = kappa_terms(SEXUAL_FUN / n, table)
    assert (observed - expected) / (1 - expected) == pytest.approx(kappa, abs=5e-5)
    assert (variance / n) ** 0.5 == pytest.approx(error, abs=1e-5)


def test_the_interval_of_many_pairs_is_near_the_asymptotic_one():
    agreement = cohens_kappa(pairs_of(10 * SEXUAL_FUN), 4)
    half = 1.96 * 0.06860 / 10**0.5
    assert agreement.kappa == pytest.approx(0.1293, abs=5e-5)
    assert agreement.ci_low == pytest.approx(0.1293 - half, abs=0.005)
    assert agreement.ci_high == pytest.approx(0.1293 + half, abs=0.005)


@pytest.mark.parametrize(("kind", "lowest"), [("none", 0.55), ("quadratic", 0.9)])
def test_a_near_miss_costs_a_weighted_kappa_less(kind, lowest):
    pairs = [(grade, grade) for grade in range(5)] * 2 + [(2, 3), (3, 4), (0, 1), (1, 2), (4, 3)]
    assert lowest < cohens_kappa(pairs, 5, kind).kappa < lowest + 0.06


def test_quadratic_weights_say_nothing_new_of_two_classes():
    pairs = [(0, 0)] * 5 + [(1, 1)] * 7 + [(0, 1)] * 2
    assert cohens_kappa(pairs, 2, "quadratic").kappa == pytest.approx(cohens_kappa(pairs, 2).kappa)


@pytest.mark.parametrize("pairs", [[], [(1, 1)], [(1, 1)] * 40])
def test_without_two_classes_there_is_no_kappa(pairs):
    agreement = cohens_kappa(pairs, 5, "quadratic")
    assert (agreement.n, agreement.kappa, agreement.ci_low, agreement.ci_high) == (len(pairs), None, None, None)


def test_one_rater_who_always_says_the_same_agrees_no_more_than_by_chance():
    assert cohens_kappa([(0, 1), (1, 1), (1, 1)], 2).kappa == 0.0


def test_full_agreement_of_three_labels_is_no_certainty():
    agreement = cohens_kappa([(0, 0), (1, 1), (1, 1)], 2)
    assert (agreement.kappa, agreement.ci_high) == (1.0, 1.0)
    assert not_none(agreement.ci_low) < 0.2


def test_the_interval_of_full_agreement_narrows_with_the_labels():
    lows = [not_none(cohens_kappa([(0, 0), (1, 1)] * n, 2).ci_low) for n in (2, 5, 20, 100)]
    assert lows == sorted(lows)
    assert lows[-1] > 0.9


@MODERATE
@given(ratings, weights)
def test_kappa_lies_in_its_interval_and_that_between_minus_one_and_one(pairs, kind):
    agreement = cohens_kappa(pairs, 5, kind)
    if agreement.kappa is not None:
        low, high = not_none(agreement.ci_low), not_none(agreement.ci_high)
        assert -1 <= low <= agreement.kappa <= high <= 1
        assert high - low > 0


@pytest.mark.slow
@MODERATE
@given(ratings, weights)
def test_who_is_first_does_not_matter(pairs, kind):
    one, other = cohens_kappa(pairs, 5, kind), cohens_kappa([(b, a) for a, b in pairs], 5, kind)
    assert one.kappa == (None if other.kappa is None else pytest.approx(other.kappa))
    assert one.ci_low == (None if other.ci_low is None else pytest.approx(other.ci_low))


@pytest.mark.slow
@MODERATE
@given(ratings, weights)
def test_counting_the_scale_backwards_changes_nothing(pairs, kind):
    one, other = cohens_kappa(pairs, 5, kind), cohens_kappa([(4 - a, 4 - b) for a, b in pairs], 5, kind)
    assert one.kappa == (None if other.kappa is None else pytest.approx(other.kappa))


@pytest.mark.slow
@MODERATE
@given(ratings)
def test_no_kappa_means_that_chance_explains_everything(pairs):
    agreement = cohens_kappa(pairs, 5)
    assert (agreement.kappa is None) == (agreement.expected == pytest.approx(1.0))


@pytest.mark.slow
@MODERATE
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40))
def test_scores_of_any_kind_give_an_agreement(pairs):
    agreement = agreement_of_scores(pairs)
    assert agreement.n == len(pairs)
    assert 0 <= agreement.observed <= 1 + 1e-9


def test_right_and_wrong_are_two_classes_and_a_judge_in_doubt_says_wrong():
    agreement = agreement_of_scores([(1.0, 0.75), (1.0, 1.0), (0.0, 0.5), (0.0, 0.25)])
    assert (agreement.weights, agreement.kappa) == ("none", 1.0)


def test_grades_are_five_classes_with_quadratic_weights():
    agreement = agreement_of_scores([(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (0.75, 0.5)])
    assert agreement.weights == "quadratic"
    assert agreement.kappa == pytest.approx(16 / 17)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_that_is_no_share_is_refused(score):
    with pytest.raises(ValueError, match="Scores must be 0 to 1"):
        agreement_of_scores([(0.5, score)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(0, 5)], 5), "Every class must be 0 to 4"),
        (([(-1, 0)], 5), "Every class must be 0 to 4"),
        (([(0, 0)], 1), "num_classes must be at least 2"),
        (([(0, 0)], 2, "none", 1.0), "confidence must lie between 0 and 1"),
    ],
)
def test_impossible_ratings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cohens_kappa(*arguments)


def raters(often, share_alike):
    """(C, C) chances of pairs: alike so often, and else each by itself."""
    often = np.array(often)
    return share_alike * np.diag(often) + (1 - share_alike) * np.outer(often, often)


def near_misses(often):
    """(C, C) chances of pairs of grades that differ by few."""
    near = np.exp(-1.5 * abs(np.subtract.outer(np.arange(5), np.arange(5))))
    return np.array(often)[:, None] * near / near.sum(axis=1, keepdims=True)


def plain_interval(counts, table):
    """Of Fleiss, Cohen and Everitt, without imagined pairs; nothing is known where it has no width."""
    n = counts.sum()
    observed, expected, variance = kappa_terms(counts / n, table)
    half = 1.96 * (variance / n) ** 0.5
    kappa = (observed - expected) / (1 - expected) if expected < 1 else 0.0
    return (kappa - half, kappa + half) if half else (-1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "chances"),
    [
        pytest.param("none", raters([0.1, 0.9], 0.6), id="rare"),
        pytest.param("none", raters([0.3, 0.7], 0.9), id="sure", marks=pytest.mark.slow),
        pytest.param("quadratic", raters([0.1, 0.1, 0.2, 0.3, 0.3], 0.6), id="grades", marks=pytest.mark.slow),
        pytest.param("quadratic", raters([0.02, 0.03, 0.05, 0.3, 0.6], 0.5), id="mostly good", marks=pytest.mark.slow),
        pytest.param("quadratic", near_misses([0.1, 0.1, 0.2, 0.3, 0.3]), id="near misses", marks=pytest.mark.slow),
    ],
)
def test_of_thirty_labels_nine_of_ten_intervals_hold_the_true_kappa(kind, chances):
    """`pytest -s` shows the figures."""
    num_classes, table = len(chances), weights_of(len(chances), kind)
    observed, expected, _ = kappa_terms(chances, table)
    true = (observed - expected) / (1 - expected)
    covered, plain = 0, 0
    for counts in np.random.default_rng(11).multinomial(30, chances.ravel(), size=400):
        pairs = np.repeat(np.arange(num_classes**2), counts)
        found = cohens_kappa([divmod(int(pair), num_classes) for pair in pairs], num_classes, kind)
        low, high = plain_interval(counts.reshape(num_classes, -1), table)
        covered += found.kappa is None or not_none(found.ci_low) <= true <= not_none(found.ci_high)
        plain += low <= true <= high
    print(f"\n{kind}, true kappa {true:.2f}: in {covered / 400:.1%} of the intervals, {plain / 400:.1%} of plain ones")
    assert covered / 400 >= 0.9


# Krippendorff 2011, reliability data of four observers and twelve units; 0: not rated.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)


def test_alpha_is_that_of_the_published_example():
    units = [[value for value in unit if value] for unit in zip(*OBSERVERS, strict=True)]
    found = krippendorffs_alpha(units)
    assert found.kappa == pytest.approx(0.849, abs=5e-4)
    assert found.n == 11
    assert not_none(found.ci_low) < not_none(found.kappa) < not_none(found.ci_high)


def test_alpha_does_not_exist_where_all_grades_are_equal():
    assert krippendorffs_alpha([(1.0, 1.0), (1.0, 1.0)]).kappa is None
    assert krippendorffs_alpha([]).n == 0
