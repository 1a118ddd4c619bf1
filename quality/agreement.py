"""Agreement of two raters beyond chance: Cohen's kappa with an interval, for comparing a judge with human labels."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import atanh, sqrt, tanh
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np

from quality.samples.records import Grade, Label

Weights = Literal["none", "quadratic"]

NUM_GRADES = 5
_RIGHT = 0.5  # a score above it counts as right where people said only right or wrong

# What the interval adds to the pairs: so many, with classes as often as the raters gave them, a fifth of it evenly.
_NUM_IMAGINED = 4
_EVEN = 0.2

_NUM_RESAMPLES = 1000
_SEED = 13

# Below it there is nothing but rounding.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters.

    `kappa` is 1 for full agreement, 0 for what chance alone gives, below 0 for less. It and its interval are None where
    it does not exist: nothing was rated by both, or both gave every answer the same single grade.
    """

    n: int
    weights: Weights
    observed: float
    """Share of agreement, weighted; 0 for n = 0."""
    expected: float
    """Agreement expected by chance from the raters' grade frequencies."""
    kappa: float | None
    ci_low: float | None
    ci_high: float | None


def agreement_of_scores(pairs: Sequence[tuple[float, float]]) -> Agreement:
    """Agreement of human and judge scores, (label, grade) 0 to 1.

    Where people only said right (1) or wrong (0), the judge's scores above 0.5 count as right, and kappa is the plain
    one. Otherwise both are rounded to the five grades, and a difference of two grades weighs four times one of one.

    Raises:
        ValueError: A score is not 0 to 1.
    """
    if any(not 0.0 <= score <= 1.0 for pair in pairs for score in pair):
        raise ValueError(f"Scores must be 0 to 1; got {next(p for p in pairs if not all(0 <= s <= 1 for s in p))}.")
    if all(label in (0.0, 1.0) for label, _ in pairs):
        return cohens_kappa([(int(label), int(grade > _RIGHT)) for label, grade in pairs], 2, "none")
    grades = [(_grade_of(label), _grade_of(grade)) for label, grade in pairs]
    return cohens_kappa(grades, NUM_GRADES, "quadratic")


def labels_and_grades(labels: Iterable[Label], grades: Iterable[Grade]) -> list[tuple[float, float]]:
    """Score pairs (human, judge) of samples with both; several human labels are averaged."""
    by_sample: dict[int, list[float]] = defaultdict(list)
    for label in labels:
        by_sample[label.sample_id].append(label.score)
    return [(fmean(by_sample[grade.sample_id]), grade.score) for grade in grades if grade.sample_id in by_sample]


def cohens_kappa(
    pairs: Sequence[tuple[int, int]], num_classes: int, weights: Weights = "none", confidence: float = 0.95
) -> Agreement:
    """Kappa of paired ratings, plain (Cohen 1960) or weighted (Cohen 1968), with an interval.

    The interval is Fisher's z of kappa, with the large-sample variance of Fleiss, Cohen and Everitt (1969). Alone that
    is far too sure of few labels, and a certainty where all agree; so it is computed with four imagined pairs added, as
    Agresti and Coull (1998) do for shares: two agree, two are by chance. `tests/quality/test_agreement.py` measures
    how often it covers.

    Args:
        pairs: Classes 0 to num_classes - 1 of the first and the second rater; ordered ones for quadratic weights.

    Raises:
        ValueError: A class is out of range, fewer than two classes, or confidence outside (0, 1).
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; got {num_classes}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")
    if any(not 0 <= rating < num_classes for pair in pairs for rating in pair):
        raise ValueError(f"Every class must be 0 to {num_classes - 1}; got {sorted(set(pairs))}.")
    if not pairs:
        return Agreement(0, weights, 0.0, 0.0, None, None, None)
    from sklearn.metrics import cohen_kappa_score  # takes a second to import; only a judge's calibration needs it

    first, second = np.transpose(pairs)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (first, second), 1)
    agreement_weights = weights_of(num_classes, weights)
    observed, expected, _ = kappa_terms(counts / len(pairs), agreement_weights)
    if 1.0 - expected < _NOTHING:
        return Agreement(len(pairs), weights, observed, expected, None, None, None)
    kappa = float(
        cohen_kappa_score(first, second, labels=range(num_classes), weights=None if weights == "none" else weights)
    )
    low, high = _interval(counts, agreement_weights, confidence)
    # The imagined pairs pull the interval towards them, and must not push it past kappa itself.
    return Agreement(len(pairs), weights, observed, expected, kappa, min(low, kappa), max(high, kappa))


def krippendorffs_alpha(units: Sequence[Sequence[float]]) -> Agreement:
    """Agreement of any number of raters, each of whom may have left answers out: alpha for interval data.

    A difference of two grades weighs four times one of one, as in weighted kappa. The interval is a percentile
    bootstrap over the answers. (Krippendorff 2011, https://repository.upenn.edu/asc_papers/43)

    Args:
        units: The ratings of each answer; those with fewer than two tell nothing.
    """
    rated = [unit for unit in units if len(unit) > 1]
    # (U, 3): ratings of each answer, their sum, and their squared differences within the answer.
    sums = np.array([(len(unit), sum(unit), _spread(unit)) for unit in rated]).reshape(-1, 3)
    squares = np.array([sum(value * value for value in unit) for unit in rated])
    alpha = _alpha(sums, squares)
    if alpha is None:
        return Agreement(len(rated), "quadratic", 1.0 if rated else 0.0, 0.0, None, None, None)
    rng = np.random.default_rng(_SEED)
    chosen = [rng.integers(0, len(rated), len(rated)) for _ in range(_NUM_RESAMPLES)]
    found = [value for own in chosen if (value := _alpha(sums[own], squares[own])) is not None]
    low, high = np.quantile(found, (0.025, 0.975)) if found else (alpha, alpha)
    observed = 1.0 - float(sums[:, 2].sum() / sums[:, 0].sum())
    return Agreement(len(rated), "quadratic", observed, 0.0, alpha, min(float(low), alpha), max(float(high), alpha))


def _alpha(sums: Any, squares: Any) -> float | None:
    """1 less the ratio of observed and expected disagreement; None where all ratings are equal."""
    n = sums[:, 0].sum()
    among_all = 2.0 * (n * squares.sum() - sums[:, 1].sum() ** 2)
    if n < 2 or among_all < _NOTHING * n * n:
        return None
    return 1.0 - float((sums[:, 2].sum() / n) / (among_all / (n * (n - 1.0))))


def _spread(unit: Sequence[float]) -> float:
    """Squared differences of all ordered pairs of an answer's ratings, by its other raters."""
    n = len(unit)
    return 2.0 * (n * sum(value * value for value in unit) - sum(unit) ** 2) / (n - 1)


def weights_of(num_classes: int, weights: Weights) -> Any:
    """(C, C) agreement weights: 1 on the diagonal, 0 where two raters differ (at most, for quadratic ones)."""
    if weights == "none":
        return np.eye(num_classes)
    distance = np.subtract.outer(np.arange(num_classes), np.arange(num_classes)) / (num_classes - 1)
    return 1.0 - distance**2


def kappa_terms(shares: Any, weights: Any) -> tuple[float, float, float]:
    """Observed and expected agreement, and n times the variance of kappa (0 where kappa does not exist).

    Args:
        shares: (C, C) share of pairs by first and second rater's class; sums to 1.
        weights: (C, C) agreement weights, 0 to 1.
    """
    first, second = shares.sum(axis=1), shares.sum(axis=0)
    observed, expected = float((weights * shares).sum()), float(first @ weights @ second)
    if 1.0 - expected < _NOTHING:
        return observed, expected, 0.0
    by_chance = np.add.outer(weights @ second, first @ weights)
    terms = weights * (1.0 - expected) - by_chance * (1.0 - observed)
    spread = float((shares * terms**2).sum()) - (observed * expected - 2.0 * expected + observed) ** 2
    return observed, expected, max(0.0, spread) / (1.0 - expected) ** 4


def _interval(counts: Any, agreement_weights: Any, confidence: float) -> tuple[float, float]:
    """Both ends of the interval, from (C, C) counts."""
    num_classes = len(counts)
    often = (counts.sum(axis=0) + counts.sum(axis=1)) / (2.0 * counts.sum())
    often = (1.0 - _EVEN) * often + _EVEN / num_classes
    imagined = _NUM_IMAGINED / 2.0 * (np.diag(often) + np.outer(often, often))
    n = counts.sum() + _NUM_IMAGINED
    observed, expected, variance = kappa_terms((counts + imagined) / n, agreement_weights)
    kappa = (observed - expected) / (1.0 - expected)
    half = NormalDist().inv_cdf((1.0 + confidence) / 2.0) * sqrt(variance / n) / (1.0 - kappa**2)
    return tanh(atanh(kappa) - half), tanh(atanh(kappa) + half)


def _grade_of(score: float) -> int:
    """0 to 4; halves up."""
    return int(score * (NUM_GRADES - 1) + 0.5)
