"""Ranks of sampled tokens, counted our way and vLLM's."""

from collections.abc import Iterator

import pytest
import torch

sampler = pytest.importorskip("vllm.v1.sample.sampler", reason="vllm is not installed")

from serve.engine.ranks import count_at_least, count_ranks_faster  # noqa: E402 - after the check that vllm is there


@pytest.fixture
def stock_count() -> Iterator[None]:
    before = sampler.batched_count_greater_than
    yield
    sampler.batched_count_greater_than = before


@pytest.mark.parametrize(("rows", "tokens"), [(1, 7), (3, 50_000), (16, 1000)])
def test_ranks_are_those_of_vllm(rows: int, tokens: int) -> None:
    logits = torch.randint(-9, 9, (rows, tokens), generator=torch.Generator().manual_seed(rows)).float()  # with ties
    logits[0, 0] = float("-inf")
    values = logits[:, 3:4].clone()
    counted = count_at_least(logits, values)
    assert counted.dtype == torch.int64
    assert counted.tolist() == (logits >= values).sum(-1).tolist()


@pytest.mark.usefixtures("stock_count")
def test_vllms_sampler_counts_our_way() -> None:
    count_ranks_faster()
    logprobs = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -1.0, -4.0]])
    gathered = sampler.Sampler.gather_logprobs(logprobs, 0, torch.tensor([2, 1]))
    assert gathered.selected_token_ranks.tolist() == [2, 2]
    assert gathered.logprobs.tolist() == [[-2.0], [-1.0]]
