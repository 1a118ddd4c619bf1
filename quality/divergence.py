"""Distances between two samples of numbers, tokens or embeddings."""

from collections.abc import Hashable, Mapping
from math import log
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ks_2samp

Floats = NDArray[np.float64]

# The exact p-value counts paths, C(n, n / 2) of them; a float holds that up to about 1,000.
_MAX_EXACT_VALUES = 1000


def ks_p_value(baseline: Floats, window: Floats, tolerance: float = 0.0) -> float:
    """Two-sided p-value of Kolmogorov and Smirnov's two-sample test.

    Exact up to 1,000 values together (conservative where values tie, as lengths do), asymptotic above.

    Args:
        baseline: (n,) at least one value.
        window: (m,) at least one value.
        tolerance: How far all values may have moved, to one side, and still count as the same. Above 0 both sides are
            tested, each against the window moved back, for half of the p-value each; asymptotic, which for windows of
            50 or more is within a tenth of the exact p-value, or above it.
    """
    if not tolerance:
        method: Literal["exact", "asymp"] = "exact" if len(baseline) + len(window) <= _MAX_EXACT_VALUES else "asymp"
        return float(ks_2samp(baseline, window, method=method).pvalue)
    # "greater": the baseline's values are the smaller ones, also than the window's once those are lowered.
    higher = ks_2samp(baseline, window - tolerance, alternative="greater", method="asymp").pvalue
    lower = ks_2samp(baseline, window + tolerance, alternative="less", method="asymp").pvalue
    return min(1.0, 2.0 * float(min(higher, lower)))


def population_stability_index(baseline: Floats, window: Floats, num_bins: int = 10) -> float:
    """PSI: sum of (w - b) ln(w / b) over bins between the baseline's quantiles, in nats.

    It is the symmetric Kullback-Leibler divergence; scorecard practice (Siddiqi, "Credit Risk Scorecards", 2006) calls
    0.1 a small shift and 0.25 a large one. Half a value is added to each bin, so that an empty one stays finite; small
    samples have a PSI above 0 without any shift.

    Args:
        baseline: (n,) at least one value.
        window: (m,) at least one value.
    """
    edges = np.unique(np.quantile(baseline, np.linspace(0, 1, num_bins + 1)[1:-1]))
    b, w = (_bin_shares(values, edges) for values in (baseline, window))
    return float(np.sum((w - b) * np.log(w / b)))


def _bin_shares(values: Floats, edges: Floats) -> Floats:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
    return np.asarray(counts / counts.sum())


def jensen_shannon_divergence(p: Mapping[Hashable, int], q: Mapping[Hashable, int]) -> float:
    """Jensen-Shannon divergence of two frequency tables, in bits: 0 the same, 1 nothing shared (Lin 1991).

    Small samples of many tokens lie apart without any shift; compare only equal sizes.

    Args:
        p: Counts, at least one above 0.
        q: Counts, at least one above 0.
    """
    shared = list(p.keys() & q.keys())
    p_shared, q_shared = (
        np.array([counts[token] for token in shared], dtype=np.float64) / sum(counts.values()) for counts in (p, q)
    )
    both = p_shared + q_shared
    nats = p_shared @ np.log(2.0 * p_shared / both) + q_shared @ np.log(2.0 * q_shared / both)
    # Each token that only one side has adds its share times ln 2.
    return float(nats / log(2.0) + 2.0 - both.sum()) / 2.0


def median_distance(embeddings: Floats) -> float:
    """Median Euclidean distance between rows: the usual bandwidth of a Gaussian kernel; 1 where all rows are equal.

    Args:
        embeddings: (n, D), at least two rows.
    """
    return float(np.median(pdist(embeddings))) or 1.0


def gaussian_kernel(x: Floats, y: Floats, bandwidth: float) -> Floats:
    """(n, m) of exp(-|x - y|^2 / (2 bandwidth^2)), for x of (n, D) and y of (m, D)."""
    return np.asarray(np.exp(-cdist(x, y, "sqeuclidean") / (2.0 * bandwidth**2)))


def squared_mmd(x: Floats, y: Floats, bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al., JMLR 2012, equation 3).

    About 0, also below, where both come from one distribution; at most 2.

    Args:
        x: (n, D), at least two rows.
        y: (m, D), at least two rows.
    """
    within = _mean_off_diagonal(gaussian_kernel(x, x, bandwidth)) + _mean_off_diagonal(gaussian_kernel(y, y, bandwidth))
    return float(within - 2.0 * gaussian_kernel(x, y, bandwidth).mean())


def _mean_off_diagonal(kernel: Floats) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
