"""Sampled tokens and their log-probabilities, computed our way and vLLM's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

sampler = pytest.importorskip("vllm.v1.sample.sampler", reason="vllm is not installed")

from vllm.v1.sample.logits_processor import LogitsProcessors  # noqa: E402 - after the check that vllm is there
from vllm.v1.sample.metadata import SamplingMetadata  # noqa: E402

from serve.engine.cpu.sampled import count_at_least, sample_faster  # noqa: E402


@pytest.fixture(autouse=True)
def stock() -> Iterator[Any]:
    """vLLM's own sampling, which is put back afterwards."""
    forward, count = sampler.Sampler.forward, sampler.batched_count_greater_than
    yield forward
    sampler.Sampler.forward, sampler.batched_count_greater_than = forward, count


def logits_of(rows: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(rows, 5000, generator=torch.Generator().manual_seed(rows)) * 5).to(dtype)


def metadata(rows: int, num_logprobs: int | None, *, temperature: float = 0.0, **changes: Any) -> SamplingMetadata:
    """With a seed for each row: tokens are then vLLM's own."""
    is_greedy = temperature == 0.0
    empty = torch.empty(0)
    fields: dict[str, Any] = {
        "temperature": None if is_greedy else torch.full((rows,), temperature),
        "all_greedy": is_greedy,
        "all_random": not is_greedy,
        "top_p": None,
        "top_k": None,
        "generators": {row: torch.Generator().manual_seed(row) for row in range(rows)},
        "max_num_logprobs": num_logprobs,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": empty,
        "presence_penalties": empty,
        "repetition_penalties": empty,
        "output_token_ids": [[] for _ in range(rows)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**(fields | changes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "temperature"), [(1, 0.0), (4, 0.0), (4, 0.8)])
@pytest.mark.slow
def test_the_same_tokens_are_sampled_with_the_same_log_probabilities(
    stock: Any, rows: int, temperature: float, dtype: torch.dtype
) -> None:
    of = sampler.Sampler()
    theirs = stock(of, logits_of(rows, dtype), metadata(rows, 0, temperature=temperature))
    sample_faster()
    ours = of(logits_of(rows, dtype), metadata(rows, 0, temperature=temperature))
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()
    assert ours.logprobs_tensors.logprob_token_ids.tolist() == theirs.logprobs_tensors.logprob_token_ids.tolist()
    assert ours.logprobs_tensors.logprob_token_ids.dtype == theirs.logprobs_tensors.logprob_token_ids.dtype
    torch.testing.assert_close(ours.logprobs_tensors.logprobs, theirs.logprobs_tensors.logprobs, atol=1e-5, rtol=0)
    assert ours.logprobs_tensors.selected_token_ranks.dtype == theirs.logprobs_tensors.selected_token_ranks.dtype


@pytest.mark.parametrize("num_logprobs", [None, 2])
def test_what_else_is_asked_for_comes_as_from_vllm(stock: Any, num_logprobs: int | None) -> None:
    of = sampler.Sampler()
    with torch.compiler.set_stance("force_eager"):  # compiling vLLM's own takes seconds and changes no token
        theirs = stock(of, logits_of(3), metadata(3, num_logprobs))
    sample_faster()
    sample_faster()  # vLLM loads a plugin more than once
    ours = of(logits_of(3), metadata(3, num_logprobs))
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()
    assert [t.tolist() for t in (ours.logprobs_tensors or ())[:3]] == [
        t.tolist() for t in (theirs.logprobs_tensors or ())[:3]
    ]


@pytest.mark.parametrize(("rows", "tokens"), [(1, 7), (3, 50_000), (16, 1000)])
def test_ranks_are_those_of_vllm(rows: int, tokens: int) -> None:
    logits = torch.randint(-9, 9, (rows, tokens), generator=torch.Generator().manual_seed(rows)).float()  # with ties
    logits[0, 0] = float("-inf")
    values = logits[:, 3:4].clone()
    counted = count_at_least(logits, values)
    assert counted.dtype == torch.int64
    assert counted.tolist() == (logits >= values).sum(-1).tolist()


def test_an_impossible_token_has_no_log_probability() -> None:
    logits = logits_of(1)
    logits[:, 100:] = float("-inf")  # a grammar's mask
    sample_faster()
    output = sampler.Sampler()(logits, metadata(1, 0))
    assert output.sampled_token_ids.item() < 100
    assert torch.isfinite(output.logprobs_tensors.logprobs).all()


class Idle:
    """A logits processor of vLLM's with nothing to do."""

    biases: dict[int, Any] = {}  # noqa: RUF012 - as vLLM has it, but nobody writes to it

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class Unknown:
    """One that vLLM does not bring: it forbids all but one token."""

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill_(torch.arange(logits.shape[1]) != 7, float("-inf"))


def processors(processor: Any) -> LogitsProcessors:
    return LogitsProcessors([processor])


@pytest.mark.parametrize("num_logprobs", [None, 0])
def test_without_a_seed_tokens_are_drawn_as_often_as_they_are_likely(num_logprobs: int | None) -> None:
    sample_faster()
    rows = 20_000
    logits = torch.tensor([0.0, 2.0, 1.0, float("-inf")]).bfloat16().repeat(rows, 1)
    plain = metadata(rows, num_logprobs, temperature=0.5, generators={}, logitsprocs=processors(Idle()))
    output = sampler.Sampler()(logits=logits, sampling_metadata=plain)
    assert output.sampled_token_ids.dtype == torch.int32
    shares = torch.bincount(output.sampled_token_ids.flatten(), minlength=4) / rows
    torch.testing.assert_close(shares, (logits[0].float() / 0.5).softmax(-1), atol=0.02, rtol=0)
    expected = logits.float().log_softmax(-1).gather(-1, output.sampled_token_ids.long())
    given = output.logprobs_tensors.logprobs if output.logprobs_tensors else expected
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
    assert (output.logprobs_tensors is None) == (num_logprobs is None)


def test_the_same_generator_draws_the_same_tokens_and_then_others() -> None:
    sample_faster()
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn += [sampler.Sampler()(logits_of(9), metadata(9, None, temperature=1.0, generators={})) for _ in range(2)]
    first, second, again, _ = (output.sampled_token_ids.tolist() for output in drawn)
    assert first == again
    assert first != second


@pytest.mark.parametrize("rows", [1, 7])
def test_without_temperature_the_tokens_are_vllms_also_where_two_are_as_likely(stock: Any, rows: int) -> None:
    logits = torch.randint(-9, 9, (rows, 5000), generator=torch.Generator().manual_seed(rows)).bfloat16()
    theirs = stock(sampler.Sampler(), logits.clone(), metadata(rows, None, generators={}))
    sample_faster()
    ours = sampler.Sampler()(logits, metadata(rows, None, generators={}))
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()


SHAPED: list[dict[str, Any]] = [
    {"top_k": torch.full((8,), 3, dtype=torch.int32)},
    {"top_p": torch.full((8,), 0.5)},
    {"generators": {2: torch.Generator().manual_seed(5)}},
    {"bad_words_token_ids": {0: [[1]]}},
    {"allowed_token_ids_mask": torch.arange(5000).repeat(8, 1) > 90},
    {"logitsprocs": processors(Unknown())},
    {
        "no_penalties": False, "prompt_token_ids": torch.zeros(8, 1, dtype=torch.long),
        "frequency_penalties": torch.ones(8), "presence_penalties": torch.ones(8),
        "repetition_penalties": torch.ones(8),
    },
]  # fmt: skip


@pytest.mark.parametrize("shaped", SHAPED, ids=lambda shaped: next(iter(shaped)))
def test_what_shapes_the_sampling_is_vllms(stock: Any, shaped: dict[str, Any]) -> None:
    shape = {"generators": {}} | shaped
    torch.manual_seed(2)
    theirs = stock(sampler.Sampler(), logits_of(8), metadata(8, None, temperature=1.0, **shape))
    sample_faster()
    for generator in shape["generators"].values():
        generator.manual_seed(5)
    torch.manual_seed(2)
    ours = sampler.Sampler()(logits_of(8), metadata(8, None, temperature=1.0, **shape))
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()
