"""Virtual tokens: the operator that writes them, what feeds it in vLLM's worker, and what the server puts in front."""

from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from serve.engine.soft_prompts import SoftPrompts, num_virtual_tokens, read_soft_prompt
from serve.errors import InvalidRequestError
from serve.kernels.ops import put_virtual_tokens
from tests.examples import at_most
from tests.peft_folders import HIDDEN, write_peft_folder, write_soft_prompt
from tests.tiny_llama import tiny_tokenizer

SLOTS, MOST = 3, 4
in_vllm = pytest.mark.slow  # imports all of vLLM


def empty_prompts(factor: float = 1.0) -> SoftPrompts:
    positions, slots = torch.zeros(16, dtype=torch.int64), torch.full((16,), -1)
    embeddings, counts = torch.zeros(SLOTS, MOST, HIDDEN), torch.zeros(SLOTS, dtype=torch.int64)
    return SoftPrompts(embeddings, counts, positions, slots, factor)


def put(y: Tensor, prompts: SoftPrompts) -> None:
    put_virtual_tokens(y, prompts.positions, prompts.slots, prompts.embeddings, prompts.counts)


@at_most(60)
@given(
    tokens=st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(0, 2 * MOST)), min_size=1, max_size=12),
    counts=st.lists(st.integers(0, MOST), min_size=SLOTS, max_size=SLOTS),
)
def test_first_tokens_of_a_soft_prompts_sequences_are_replaced(tokens: list[Any], counts: list[int]) -> None:
    prompts = empty_prompts()
    for slot, count in enumerate(counts):
        prompts.set(slot, torch.randn(count, HIDDEN))
    y = torch.randn(len(tokens), HIDDEN)
    wanted = y.clone()
    for row, (slot, position) in enumerate(tokens):
        prompts.slots[row], prompts.positions[row] = slot, position
        if slot >= 0 and position < counts[slot]:
            wanted[row] = prompts.embeddings[slot, position]
    prompts.slots[len(tokens) :] = 99  # what an earlier, longer batch left behind
    put(y, prompts)
    assert torch.equal(y, wanted)


def test_a_slot_that_was_cleared_changes_nothing() -> None:
    prompts = empty_prompts()
    prompts.set(1, torch.ones(MOST, HIDDEN))
    prompts.clear(1)
    prompts.slots.fill_(1)
    y = torch.zeros(16, HIDDEN)
    put(y, prompts)
    assert not y.any()


def test_what_the_model_multiplies_by_is_divided_out() -> None:
    prompts = empty_prompts(factor=8.0)
    prompts.set(0, torch.full((1, HIDDEN), 4.0))
    assert prompts.embeddings[0, 0].tolist() == [0.5] * HIDDEN


@pytest.mark.slow
def test_torch_finds_no_fault_with_the_operator() -> None:
    prompts = empty_prompts()
    prompts.set(0, torch.ones(2, HIDDEN))
    arguments = (prompts.positions, prompts.slots, prompts.embeddings, prompts.counts)
    torch.library.opcheck(put_virtual_tokens, (torch.zeros(5, HIDDEN), *arguments))


@pytest.mark.gpu
def test_a_gpu_writes_what_a_cpu_writes() -> None:
    prompts = empty_prompts()
    prompts.set(2, torch.randn(3, HIDDEN))
    prompts.slots[:4], prompts.positions[:4] = torch.tensor([2, 2, -1, 2]), torch.tensor([0, 2, 0, 3])
    on_cpu, y = torch.randn(4, HIDDEN), torch.empty(0)
    tensors = (prompts.positions, prompts.slots, prompts.embeddings, prompts.counts)
    y, *on_gpu = (tensor.cuda() for tensor in (on_cpu, *tensors))
    put(on_cpu, prompts)
    put_virtual_tokens(y, *on_gpu)
    assert torch.equal(y.cpu(), on_cpu)


def test_only_folders_of_soft_prompts_are_read(tmp_path: Path) -> None:
    embeddings = torch.randn(5, HIDDEN)
    soft = write_soft_prompt(tmp_path / "soft", embeddings, peft_type="P_TUNING")
    read = read_soft_prompt(soft)
    assert read is not None
    assert torch.equal(read, embeddings)
    assert num_virtual_tokens(soft) == 5
    lora = write_peft_folder(tmp_path / "lora")
    assert read_soft_prompt(lora) is None
    assert num_virtual_tokens(lora) == 0
    assert read_soft_prompt(tmp_path) is None  # as a staged folder, which has no configuration


class Scaled(nn.Module):
    """A model that does something to its embeddings, as `change` says."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Embedding(32, HIDDEN, dtype=torch.bfloat16)
        self._change = change

    def embed_input_ids(self, ids: Tensor) -> Tensor:
        changed: Tensor = self._change(self.layer(ids))
        return changed


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda e: e, 1.0),
        (lambda e: e * torch.tensor(24.0).bfloat16(), 24.0),
        (torch.tanh, None),
        (torch.zeros_like, None),
    ],
)
def test_a_model_that_scales_its_embeddings_is_told(change: Any, factor: float | None) -> None:
    from serve.engine.soft_prompts import _factor

    model = Scaled(change)
    assert _factor(model, model.layer) == (None if not factor else pytest.approx(factor, rel=1e-3))


@in_vllm
def test_an_activated_soft_prompt_fills_its_slot_and_a_lora_empties_it() -> None:
    from serve.engine.soft_prompts import _activate_adapter

    prompts = empty_prompts()
    models = {7: SimpleNamespace(lorikeet_soft_prompt=torch.ones(2, HIDDEN)), 8: SimpleNamespace()}
    manager = SimpleNamespace(
        lora_index_to_id=[None, 7, None], lorikeet_soft_prompts=prompts, _registered_adapters=models
    )
    assert _activate_adapter(lambda *_: True, manager, 7)
    assert prompts.counts.tolist() == [0, 2, 0]
    manager.lora_index_to_id[1] = 8
    assert _activate_adapter(lambda *_: True, manager, 8)
    assert prompts.counts.tolist() == [0, 0, 0]


@in_vllm
def test_a_model_without_a_place_for_virtual_tokens_refuses_them(tmp_path: Path) -> None:
    from serve.engine.loading.mapped import _load_adapter

    folder = write_soft_prompt(tmp_path / "soft", torch.ones(2, HIDDEN))
    worker = SimpleNamespace(_adapter_manager=SimpleNamespace(lorikeet_layout=SimpleNamespace(layers=())))
    worker.lorikeet_reader = None
    request: Any = SimpleNamespace(lora_path=str(folder), lora_int_id=1)
    with pytest.raises(ValueError, match="take no virtual tokens"):
        _load_adapter(None, worker, request)


class _Counting:
    """What `placeholder_id` asks of a tokenizer whose vocabulary has a gap."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1, "d": 3}


@in_vllm
def test_the_placeholder_is_an_unused_id_or_a_rare_special_token() -> None:
    from serve.engine.prepended import placeholder_id

    assert placeholder_id(_Counting(), 8) == 7
    assert placeholder_id(_Counting(), 4) == 2
    tokenizer = tiny_tokenizer()
    # Of <|endoftext|>, <|im_start|> and <|im_end|> the last two are of the chat template.
    assert placeholder_id(tokenizer, len(tokenizer)) == tokenizer.convert_tokens_to_ids("<|endoftext|>")


@in_vllm
@pytest.mark.anyio
async def test_outputs_are_those_of_the_prompt_that_was_sent() -> None:
    from serve.engine.prepended import without_virtual

    async def stream() -> AsyncGenerator[Any, None]:
        for logprobs, cached in (([None, "v", "a", "b", "c"], 4), ([], 1)):
            yield SimpleNamespace(prompt_token_ids=[9, 9, 1, 2, 3], prompt_logprobs=logprobs, num_cached_tokens=cached)

    first, second = [output async for output in without_virtual(stream(), 2)]
    assert first.prompt_token_ids == second.prompt_token_ids == [1, 2, 3]
    assert first.prompt_logprobs == [None, "b", "c"]
    assert second.prompt_logprobs == []
    assert (first.num_cached_tokens, second.num_cached_tokens) == (2, 0)


@in_vllm
@pytest.mark.parametrize(("num_tokens", "min_tokens", "room"), [(3, 0, 5), (7, 0, 1), (8, 0, None), (3, 6, None)])
def test_virtual_tokens_take_room_from_the_answer(num_tokens: int, min_tokens: int, room: int | None) -> None:
    from serve.engine.prepended import PrependingAsyncLLM

    llm: Any = PrependingAsyncLLM.__new__(PrependingAsyncLLM)
    llm.model_config = SimpleNamespace(max_model_len=10)
    llm.virtual_tokens["soft@1"] = 2
    asked = ({"prompt_token_ids": [1] * num_tokens}, SimpleNamespace(min_tokens=min_tokens))
    soft = SimpleNamespace(lora_name="soft@1")
    if room is None:
        with pytest.raises(InvalidRequestError, match="2 virtual ones"):
            llm.room(*asked, soft)
    else:
        assert llm.room(*asked, soft) == room
    assert llm.num_virtual(None) == llm.num_virtual(SimpleNamespace(lora_name="lora@1")) == 0
