"""Likelihood of texts and of endings, in nats."""

from collections.abc import Sequence
from math import sqrt

import torch
from scipy import stats
from transformers import PreTrainedTokenizerBase

from adapters.scores import Score
from train.methods.method import Trainable

BLOCK_TOKENS = 16
"""Neighbouring tokens are alike; blocks of so many count as independent."""
_BATCH_SIZE = 32


@torch.inference_mode()
def token_nats(model: Trainable, token_ids: Sequence[int]) -> list[float]:
    """Negative log-likelihood of each token but the first one."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -ids.shape[1] : -1].float()
    nats: list[float] = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    return nats


def mean_nats(nats: Sequence[float]) -> Score:
    """Mean per token, with a 95% interval over blocks of neighbouring tokens (Student's t); `n` counts tokens."""
    n = len(nats)
    mean = sum(nats) / n if n else 0.0
    sums = [sum(value - mean for value in nats[start : start + BLOCK_TOKENS]) for start in range(0, n, BLOCK_TOKENS)]
    count = len(sums)
    if count < 2:
        return Score(value=mean, ci_low=mean, ci_high=mean, n=n)
    spread = sqrt(sum(value**2 for value in sums) * count / (count - 1)) / n
    half = float(stats.t.ppf(0.975, count - 1)) * spread
    return Score(value=mean, ci_low=mean - half, ci_high=mean + half, n=n)


@torch.inference_mode()
def ending_logprobs(
    model: Trainable, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[float]:
    """Summed log-probability of each ending after its beginning, (beginning, ending)."""
    encoded = [_ending(tokenizer, *pair) for pair in pairs]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]))
    found: dict[int, float] = {}
    for start in range(0, len(order), _BATCH_SIZE):
        batch = order[start : start + _BATCH_SIZE]
        rows = [torch.tensor(encoded[index][0], device=model.device) for index in batch]
        # Padding follows the tokens, which do not see it.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
        for row, index in enumerate(batch):
            first, last = encoded[index][1], len(encoded[index][0])
            own = torch.log_softmax(logits[row, first - 1 : last - 1].float(), -1)
            found[index] = float(own.gather(-1, ids[row, first:last, None]).sum())
    return [found[index] for index in range(len(pairs))]


def _ending(tokenizer: PreTrainedTokenizerBase, beginning: str, ending: str) -> tuple[list[int], int]:
    """Token ids of both, and where the ending begins: at least at the second token."""
    alone = tokenizer(beginning, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{beginning} {ending}", add_special_tokens=False)["input_ids"]
    common = next((n for n, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
    return list(whole), max(1, common)
