"""Drift detection: windows of exchanges compared with a baseline recorded at publish.

Each feature is one number per exchange, and each window is compared with the baseline by Kolmogorov and Smirnov's
two-sample test. Tokens and embeddings become numbers through one half of the baseline: how surprising the tokens are
under that half's frequencies, how similar the embedding is to that half's. The other half is what windows are compared
with, so that both are equally new to the yardstick.

Repeated looks: alpha spending. Look k may use alpha / (k (k + 1)), shared equally by the features; over all looks that
sums to alpha, so a stream that never drifts is ever called drifting with probability at most alpha. It is the union
bound, hence true although all windows share one baseline; a product of e-values would need windows that are
independent.

Training stack and engine differ a little in their log-probabilities, always to the same side, and a rank test would
see that for sure answers. A mean log-probability has drifted only where it is further away than that.

A rank test sees what moves many exchanges. A fault in few of them needs large windows, or a share that is counted:
noise in three answers of ten shows in windows of 200, often not in windows of 50; in one of ten, in neither.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import log

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from quality.divergence import (
    Floats,
    gaussian_kernel,
    jensen_shannon_divergence,
    ks_p_value,
    median_distance,
    population_stability_index,
    squared_mmd,
)

MIN_BASELINE_EXCHANGES = 20

LOGPROB_TOLERANCE_NATS = 0.02
"""Between training stack and engine, mean over an answer. At load, parity measured 0.001 to 0.007 a token here."""

_MEAN_LOGPROB = "mean log-probability"
_UNSEEN = log(0.5)


class Exchange(BaseModel):
    """A prompt and its answer, with the features that drift detection uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: tuple[int | str, ...] = Field(description="Token ids, or words; the same kind everywhere.")
    completion_tokens: tuple[int | str, ...]
    mean_logprob: float | None = Field(None, allow_inf_nan=False, description="Per answer token, nats.")
    embedding: tuple[float, ...] | None = Field(None, description="Of some exchanges, whatever is in them, or of none.")


@dataclass(frozen=True)
class FeatureDrift:
    """One feature in one window."""

    name: str
    p_value: float
    alpha: float
    """What this test may spend at this look."""
    baseline_mean: float
    window_mean: float
    psi: float
    """Population stability index, nats."""

    @property
    def is_drift(self) -> bool:
        return self.p_value <= self.alpha

    def __str__(self) -> str:
        return (
            f"{self.name} is {self.window_mean:.4g} on average, {self.baseline_mean:.4g} at publish "
            f"(KS p {self.p_value:.1e}, at most {self.alpha:.1e} is drift; PSI {self.psi:.2f})"
        )


@dataclass(frozen=True)
class DriftReport:
    """Result of one drift check on one window."""

    look: int
    num_exchanges: int
    features: tuple[FeatureDrift, ...]
    """Those that both baseline and window have."""
    prompt_divergence: float | None
    """Jensen-Shannon divergence of the token frequencies, bits; None where either side has no token."""
    completion_divergence: float | None
    embedding_mmd2: float | None
    """Squared maximum mean discrepancy; None with fewer than two embeddings on either side."""

    @property
    def is_drift(self) -> bool:
        return any(feature.is_drift for feature in self.features)

    @property
    def reason(self) -> str:
        drifted = [str(feature) for feature in self.features if feature.is_drift]
        return "; ".join(drifted) or f"look {self.look} at {self.num_exchanges} exchanges found no drift"


class TokenFrequencies:
    """How frequent tokens are: half a count is added to each, and to "any token not seen" (Krichevsky-Trofimov)."""

    def __init__(self, texts: Sequence[Sequence[Hashable]]) -> None:
        self.counts = _count(texts)
        self._log_total = log(self.counts.total() + (len(self.counts) + 1) / 2.0)
        self._log_counts = {token: log(count + 0.5) for token, count in self.counts.items()}

    def surprisal(self, tokens: Sequence[Hashable]) -> float:
        """Mean of -ln frequency, nats per token; NaN where there are no tokens."""
        if not tokens:
            return float("nan")
        return self._log_total - sum(map(self._log_counts.get, tokens, repeat(_UNSEEN))) / len(tokens)


class DriftBaseline:
    """What exchanges looked like at publish. They should come in random order: every other one is the yardstick.

    Raises:
        ValueError: Fewer than 20 exchanges.
    """

    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        if len(exchanges) < MIN_BASELINE_EXCHANGES:
            raise ValueError(
                f"A drift baseline needs at least {MIN_BASELINE_EXCHANGES} exchanges; got {len(exchanges)}. "
                "Publish with more evaluation examples."
            )
        yardstick, held_back = exchanges[::2], exchanges[1::2]
        self._prompt_frequencies = TokenFrequencies([seen.prompt_tokens for seen in yardstick])
        self._completion_frequencies = TokenFrequencies([seen.completion_tokens for seen in yardstick])
        self._embeddings = _embeddings(yardstick)
        self._columns = {**_plain_columns(exchanges), **self._learned_columns(held_back)}

    def look(self, window: Sequence[Exchange], look: int, alpha: float = 0.01) -> DriftReport:
        """Check a window for drift against the baseline.

        Args:
            window: Exchanges that no earlier check used, in a number fixed beforehand.
            look: Number of the check since publish, from 1.
            alpha: Probability of ever reporting drift on a stream without drift.

        Raises:
            ValueError: The window is empty, or `look` below 1.
        """
        if look < 1 or not window:
            raise ValueError(
                f"A check needs a number from 1 and a non-empty window; got look {look}, {len(window)} exchanges."
            )
        alpha_each = alpha_at(look, alpha) / len(self._columns)
        columns = {**_plain_columns(window), **self._learned_columns(window)}
        shared = [name for name in self._columns if name in columns]
        return DriftReport(
            look=look,
            num_exchanges=len(window),
            features=tuple(_compare(name, self._columns[name], columns[name], alpha_each) for name in shared),
            prompt_divergence=_divergence(self._prompt_frequencies, [seen.prompt_tokens for seen in window]),
            completion_divergence=_divergence(
                self._completion_frequencies, [seen.completion_tokens for seen in window]
            ),
            embedding_mmd2=self._embedding_mmd2(_embeddings(window)),
        )

    def _learned_columns(self, exchanges: Sequence[Exchange]) -> dict[str, Floats]:
        """Features whose yardstick is a half of the baseline."""
        columns = {
            "prompt surprisal": [self._prompt_frequencies.surprisal(seen.prompt_tokens) for seen in exchanges],
            "answer surprisal": [self._completion_frequencies.surprisal(seen.completion_tokens) for seen in exchanges],
        }
        embeddings = _embeddings(exchanges)
        if embeddings is not None and self._embeddings is not None:
            kernel = gaussian_kernel(embeddings, self._embeddings, median_distance(self._embeddings))
            columns["embedding similarity"] = kernel.mean(axis=1).tolist()
        return _present(columns)

    def _embedding_mmd2(self, window: Floats | None) -> float | None:
        if self._embeddings is None or window is None:
            return None
        return squared_mmd(self._embeddings, window, median_distance(self._embeddings))


def alpha_at(look: int, alpha: float) -> float:
    """Significance level of check 1, 2, ...; the sum over all checks is alpha."""
    return alpha / (look * (look + 1))


def _compare(name: str, baseline: Floats, window: Floats, alpha: float) -> FeatureDrift:
    return FeatureDrift(
        name=name,
        p_value=ks_p_value(baseline, window, LOGPROB_TOLERANCE_NATS if name == _MEAN_LOGPROB else 0.0),
        alpha=alpha,
        baseline_mean=float(baseline.mean()),
        window_mean=float(window.mean()),
        psi=population_stability_index(baseline, window),
    )


def _plain_columns(exchanges: Sequence[Exchange]) -> dict[str, Floats]:
    return _present(
        {
            "prompt length": [float(len(seen.prompt_tokens)) for seen in exchanges],
            "answer length": [float(len(seen.completion_tokens)) for seen in exchanges],
            _MEAN_LOGPROB: [float("nan") if seen.mean_logprob is None else seen.mean_logprob for seen in exchanges],
        }
    )


def _present(columns: dict[str, list[float]]) -> dict[str, Floats]:
    """Drop features that all exchanges lack, and exchanges that lack a remaining feature."""
    arrays = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    kept = {name: array[~np.isnan(array)] for name, array in arrays.items()}
    return {name: array for name, array in kept.items() if len(array)}


def _embeddings(exchanges: Sequence[Exchange]) -> Floats | None:
    """(n, D) embeddings of the exchanges that have one; None if fewer than two."""
    rows = [seen.embedding for seen in exchanges if seen.embedding is not None]
    return np.array(rows, dtype=np.float64) if len(rows) > 1 else None


def _divergence(baseline: TokenFrequencies, window: Sequence[Sequence[Hashable]]) -> float | None:
    counts = _count(window)
    return jensen_shannon_divergence(baseline.counts, counts) if baseline.counts and counts else None


def _count(texts: Sequence[Sequence[Hashable]]) -> Counter[Hashable]:
    """One text per call: a single call for all texts would block the other threads."""
    counts: Counter[Hashable] = Counter()
    for text in texts:
        counts.update(text)
    return counts
