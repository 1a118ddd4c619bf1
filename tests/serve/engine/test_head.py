"""Rows of a prompt that are multiplied by the output head get the part of their own adapter."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve.engine.head import map_prompts_to_adapters

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together

VOCABULARY, HIDDEN, RANK, SLOTS = 11, 8, 2, 2
IDS = [21, 22]
# Four requests, of which all but the second one are asked for their prompts: 3 tokens of the base, 1 of the adapter in
# slot 1, 4 of the one in slot 0, 2 of the one in slot 1.
TOKENS = (0, 0, 0, 22, 21, 21, 21, 21, 22, 22)
SAMPLED = (0, 22, 21, 22)
PROMPTS = (slice(0, 2), slice(4, 7), slice(8, 9))


class Layer:
    """What of vLLM's output head with LoRA adds to the base's logits."""

    def __init__(self, punica: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        self.punica_wrapper = punica
        self.lora_a = torch.randn(SLOTS, 1, RANK, HIDDEN, generator=generator)
        self.lora_b = torch.randn(SLOTS, 1, VOCABULARY, RANK, generator=generator)

    def _get_logits(self, hidden_states: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden_states), VOCABULARY)
        self.punica_wrapper.add_lora_logits(logits, hidden_states, self.lora_a, self.lora_b, 1.0)
        return logits

    def expected(self, rows: Tensor, slots: Tensor) -> Tensor:
        none = torch.zeros(VOCABULARY, HIDDEN)
        parts = [self.lora_b[slot, 0] @ self.lora_a[slot, 0] if slot >= 0 else none for slot in slots]
        return torch.stack([part @ row for part, row in zip(parts, rows, strict=True)])


class Model:
    """Scales what goes into its head, as some do: the head gets no view of the batch's rows."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.layer._get_logits(hidden_states * 2.0)


class Runner:
    def __init__(self, model: Model) -> None:
        self.model, self.num_prompt_logprobs = model, {"a": 1}

    def _get_prompt_logprobs_dict(self, hidden_states: Tensor) -> list[Tensor]:
        return [self.model.compute_logits(hidden_states[rows]) for rows in PROMPTS]


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    """With a batch of the four requests, on the wrapper that serves CPUs."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    from vllm.lora.layers import LoRAMapping

    from serve.engine.cpu.punica import GroupedPunicaWrapper

    monkeypatch.setattr("vllm.lora.layers.LogitsProcessorWithLoRA", Layer)
    monkeypatch.setattr("vllm.v1.worker.gpu_model_runner.GPUModelRunner", Runner)
    for owner, name in ((Layer, "_get_logits"), (Runner, "_get_prompt_logprobs_dict")):
        monkeypatch.setattr(owner, name, vars(owner)[name])  # put back after the test
    map_prompts_to_adapters()
    map_prompts_to_adapters()  # vLLM loads a plugin more than once
    punica = GroupedPunicaWrapper(max_num_batched_tokens=16, max_batches=4, device="cpu")
    punica.update_metadata(LoRAMapping(TOKENS, SAMPLED, is_prefill=True), IDS, SLOTS, VOCABULARY)
    return Layer(punica)


HIDDEN_STATES = torch.randn(len(TOKENS), HIDDEN, generator=torch.Generator().manual_seed(2))


def slots_of(ids: Sequence[int]) -> Tensor:
    return torch.tensor([IDS.index(each) if each else -1 for each in ids])


def test_each_prompt_gets_its_own_adapters_part(layer: Layer) -> None:
    logits = Runner(Model(layer))._get_prompt_logprobs_dict(HIDDEN_STATES)
    for of_prompt, rows in zip(logits, PROMPTS, strict=True):
        expected = layer.expected(HIDDEN_STATES[rows] * 2.0, slots_of(list(TOKENS)[rows]))
        torch.testing.assert_close(of_prompt, expected)


def test_sampled_rows_are_mapped_as_before(layer: Layer) -> None:
    model, sampled = Model(layer), HIDDEN_STATES[[2, 3, 7, 9]]
    expected = layer.expected(sampled * 2.0, slots_of(SAMPLED))
    torch.testing.assert_close(model.compute_logits(sampled), expected)
    Runner(model)._get_prompt_logprobs_dict(HIDDEN_STATES)
    torch.testing.assert_close(model.compute_logits(sampled), expected)
    assert "compute_logits" not in vars(model)


def test_the_kernels_of_a_gpu_are_told_the_same_rows(layer: Layer) -> None:
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

    meta, told = LoRAKernelMeta.make(SLOTS, 16, "cpu"), []
    layer.punica_wrapper.prompt_mapping_meta = meta
    layer.punica_wrapper.add_lora_logits = lambda y, *_: told.append(meta.token_lora_mapping[: len(y)].tolist())
    Runner(Model(layer))._get_prompt_logprobs_dict(HIDDEN_STATES)
    assert told[1:] == [[0, 0, 0], [1]]  # of the base's rows it is only said that they have none
    assert meta.token_lora_mapping[: len(SAMPLED)].tolist() == slots_of(SAMPLED).tolist()


def test_an_error_leaves_the_sampled_rows_mapped(layer: Layer) -> None:
    runner = Runner(SimpleNamespace(compute_logits=None))  # type: ignore[arg-type] # a model that fails
    with pytest.raises(TypeError):
        runner._get_prompt_logprobs_dict(HIDDEN_STATES)
    assert layer.punica_wrapper.sampler_indices.tolist() == slots_of(SAMPLED).tolist()
