"""Perplexity of held-out documents, without and with the adapter."""

from collections.abc import Sequence
from math import exp, sqrt

import torch
from scipy import stats

from adapters.scores import Score
from adapters.store.evaluation_records import ObjectiveScore
from train.evaluate.local import without_adapter
from train.methods.method import Trainable

Pieces = tuple[tuple[int, ...], ...]


@torch.inference_mode()
def perplexity(model: Trainable, documents: Sequence[Pieces]) -> ObjectiveScore:
    """exp of the mean negative log-likelihood per token; each document's pieces are read apart."""
    with without_adapter(model):
        base = [_summed_nll(model, pieces) for pieces in documents]
    own = [_summed_nll(model, pieces) for pieces in documents]
    return ObjectiveScore(
        base=perplexity_score(base),
        adapter=perplexity_score(own),
        lower_is_better=True,
        paired_gain=perplexity_gain(base, own),
    )


def perplexity_gain(base: Sequence[tuple[float, int]], own: Sequence[tuple[float, int]]) -> Score | None:
    """Share by which perplexity falls, with a 95% interval paired by document; None: fewer than two documents."""
    n, num_tokens = len(own), sum(count for _, count in own)
    if n < 2 or num_tokens == 0:
        return None
    changes = [after - before for (before, _), (after, _) in zip(base, own, strict=True)]
    mean = sum(changes) / num_tokens
    squares = sum((change - mean * count) ** 2 for change, (_, count) in zip(changes, own, strict=True))
    half = float(stats.t.ppf(0.975, n - 1)) * sqrt(squares * n / (n - 1)) / num_tokens
    return Score(value=1 - exp(mean), ci_low=1 - exp(mean + half), ci_high=1 - exp(mean - half), n=n)


def perplexity_score(sums: Sequence[tuple[float, int]]) -> Score:
    """Of each document's (summed nats, tokens), with a 95% interval over documents (ratio estimator)."""
    num_tokens, n = sum(count for _, count in sums), len(sums)
    mean = sum(nats for nats, _ in sums) / max(num_tokens, 1)
    squares = sum((nats - mean * count) ** 2 for nats, count in sums)
    half = 1.96 * sqrt(squares * n / (n - 1)) / num_tokens if n > 1 else 0.0
    return Score(value=exp(mean), ci_low=exp(mean - half), ci_high=exp(mean + half), n=n)


def _summed_nll(model: Trainable, pieces: Pieces) -> tuple[float, int]:
    total = 0.0
    for piece in pieces:
        ids = torch.tensor([piece], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -ids.shape[1] : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return total, sum(len(piece) - 1 for piece in pieces)
