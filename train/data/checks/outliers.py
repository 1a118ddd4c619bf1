"""Questions that are unlike all others, by the distance of their embeddings to the nearest ones."""

from dataclasses import dataclass

import numpy as np

from train.data.checks.embeddings import EmbeddedExamples
from train.data.steps import Finding, finding

_NUM_NEIGHBOURS = 5
MIN_ROWS = 50
_MAX_DEVIATIONS = 6.0
"""Distance from the median, in standard deviations by the median absolute deviation, from which a row is an outlier."""

_MAD_TO_STD = 1.4826


@dataclass(frozen=True)
class Outliers:
    """Rows unlike all others, the farthest first, among `num_checked` of `num_rows` rows."""

    num_rows: int
    num_checked: int
    findings: tuple[Finding, ...]


def check_outliers(embedded: EmbeddedExamples) -> Outliers | None:
    """None: too few rows to know what is usual."""
    if len(embedded.examples) < MIN_ROWS:
        return None
    distances = _neighbour_distances(embedded.vectors)
    median = float(np.median(distances))
    deviation = _MAD_TO_STD * float(np.median(np.abs(distances - median)))
    order = np.argsort(-distances, kind="stable")
    far = [int(index) for index in order if distances[index] > median + _MAX_DEVIATIONS * max(deviation, 1e-3)]
    findings = tuple(
        finding(
            embedded.examples[index],
            f"unlike all others: distance {distances[index]:.2f} to its nearest questions, median {median:.2f}",
        )
        for index in far
    )
    return Outliers(embedded.num_rows, len(embedded.examples), findings)


def _neighbour_distances(vectors: np.ndarray) -> np.ndarray:
    """Mean cosine distance of each row to its nearest others."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -1.0)
    nearest = np.partition(similarities, -_NUM_NEIGHBOURS, axis=1)[:, -_NUM_NEIGHBOURS:]
    return np.asarray(1.0 - nearest.mean(axis=1))
