"""Attention called our way, beside vLLM's own calls of the same kernels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.platforms import current_platform

from serve.engine.cpu import attention
from serve.engine.finite import zero_blocks
from tests.operators import require_operators

HEADS, KV_HEADS, SIZE, BLOCK, BLOCKS = 4, 2, 64, 32, 8
SCALE = SIZE**-0.5
NAN = float("nan")


@dataclass
class Metadata:
    """What of vLLM's `CPUAttentionMetadata` is read."""

    num_actual_tokens: int
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    scheduler_metadata: Tensor
    causal: bool = True


@dataclass
class Layer:
    """What of vLLM's `Attention` is read."""

    layer_name: str
    kv_cache: Tensor
    isa: str = "vec"
    impl: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            scale=SCALE, sliding_window=-1, logits_soft_cap=0, kv_cache_dtype="auto"
        )
    )


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if not current_platform.is_cpu():
        pytest.skip("vLLM is not the one for CPUs")
    require_operators()
    current_platform.import_kernels()


@pytest.fixture
def layers() -> Iterator[list[Layer]]:
    known = attention._layers[:]
    made = [Layer(f"layer {number}", new_cache()) for number in range(3)]
    attention._layers[:] = made
    yield made
    attention._layers[:] = known
    attention._known_caches.clear()


def new_cache() -> Tensor:
    return torch.zeros(BLOCKS, KV_HEADS, BLOCK, 2 * SIZE, dtype=torch.bfloat16)


def metadata(lengths: list[int], new_tokens: list[int]) -> Metadata:
    """Of requests that have `lengths` tokens, the last `new_tokens` of which come in this step; two blocks each."""
    blocks = torch.arange(2 * len(lengths), dtype=torch.int32).view(-1, 2)
    slots = [
        int(blocks[request, place // BLOCK]) * BLOCK + place % BLOCK
        for request, (length, new) in enumerate(zip(lengths, new_tokens, strict=True))
        for place in range(length - new, length)
    ]
    starts = torch.tensor([0, *torch.tensor(new_tokens).cumsum(0)], dtype=torch.int32)
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    schedule = torch.ops._C.get_scheduler_metadata(
        len(lengths), HEADS, KV_HEADS, SIZE, seq_lens, torch.bfloat16, starts, True, -1, "vec", True, None, "auto"
    )
    return Metadata(len(slots), starts, seq_lens, blocks, torch.tensor(slots), schedule)


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def some(heads: int) -> Tensor:
        return torch.randn(rows, heads, SIZE, generator=generator).bfloat16()

    return some(HEADS), some(KV_HEADS), some(KV_HEADS)


def by_vllm(cache: Tensor, batch: Metadata, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows, output = batch.num_actual_tokens, torch.zeros_like(query)
    keys, values = cache.view(BLOCKS, KV_HEADS, 2 * BLOCK, -1).chunk(2, dim=2)
    torch.ops._C.cpu_attn_reshape_and_cache(key[:rows], value[:rows], keys, values, batch.slot_mapping, "vec")
    torch.ops._C.cpu_attention_with_kv_cache(
        query[:rows], keys, values, output[:rows], batch.query_start_loc, batch.seq_lens, SCALE, True, None, -1,
        batch.block_table, 0.0, batch.scheduler_metadata, None, None,
    )  # fmt: skip
    return output


def ours(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    output = torch.zeros_like(query)
    torch.ops.lorikeet.attend(query, key, value, output, number)
    return output


@pytest.mark.parametrize(("lengths", "new_tokens"), [([1], [1]), ([40, 7, 33], [1, 1, 1]), ([50, 9], [50, 1])])
def test_answers_and_caches_are_those_of_vllm(layers: list[Layer], lengths: list[int], new_tokens: list[int]) -> None:
    batch = metadata(lengths, new_tokens)
    cache, sent = new_cache(), inputs(sum(new_tokens) + 2)  # two rows more than there are tokens
    want = by_vllm(cache, batch, *sent)
    assert want.any()
    with attention._step({layer.layer_name: batch for layer in layers}):
        assert torch.equal(ours(1, *sent), want)
    assert torch.equal(layers[1].kv_cache, cache)
    assert not layers[0].kv_cache.any()


@pytest.mark.parametrize(("lengths", "new_tokens"), [([1], [1]), ([40, 7, 33], [1, 1, 1]), ([50, 9], [50, 1])])
def test_nan_that_another_request_left_is_zeroed_with_the_block(
    layers: list[Layer], lengths: list[int], new_tokens: list[int]
) -> None:
    """A block's rows after a sequence's end are read, and so are masked: what is zeroed is not seen."""
    batch, sent = metadata(lengths, new_tokens), inputs(sum(new_tokens) + 2)
    sent = tuple(rows.index_fill(0, torch.tensor([-2, -1]) % len(rows), NAN) for rows in sent)  # type: ignore[assignment] # three
    want = by_vllm(new_cache(), batch, *sent)
    layers[1].kv_cache = new_cache().fill_(NAN)
    zero_blocks([layers[1].kv_cache], batch.block_table.flatten().tolist(), BLOCKS)
    with attention._step({layer.layer_name: batch for layer in layers}):
        got = ours(1, *sent)
    assert torch.equal(got[: sum(new_tokens)], want[: sum(new_tokens)])
    assert got[: sum(new_tokens)].isfinite().all()
    assert layers[1].kv_cache[2 * len(lengths) :].isnan().all()


def test_nan_of_one_request_reaches_no_other(layers: list[Layer]) -> None:
    batch = metadata([40, 7, 33], [40, 7, 1])
    sent = inputs(48)
    with attention._step({"layer 0": batch}):
        want = ours(0, *sent)
    layers[0].kv_cache = new_cache()
    for rows in sent:
        rows[3:40] = NAN
    with attention._step({"layer 0": batch}):
        got = ours(0, *sent)
    assert got[3:40].isnan().all()
    assert torch.equal(got[40:], want[40:])


def test_layers_may_see_different_batches(layers: list[Layer]) -> None:
    batches = [metadata([3], [3]), metadata([2], [2])]
    sent = inputs(3)
    with attention._step({"layer 0": batches[0], "layer 1": batches[1]}):
        assert torch.equal(ours(0, *sent), by_vllm(new_cache(), batches[0], *sent))
        assert torch.equal(ours(1, *sent), by_vllm(new_cache(), batches[1], *sent))
        for unknown in (2, 3):
            with pytest.raises(RuntimeError, match="compiled for another model"):
                ours(unknown, *sent)


def test_a_run_without_requests_touches_nothing(layers: list[Layer]) -> None:
    batch, sent = metadata([3], [3]), inputs(3)
    with attention._step({"layer 0": batch}):
        pass
    before = layers[0].kv_cache.clone()
    assert not ours(0, *sent).any()
    with attention._step(None):
        assert not ours(0, *sent).any()
    with pytest.raises(ZeroDivisionError), attention._step({"layer 0": batch}):
        _ = 1 / 0
    assert not ours(0, *sent).any()
    assert torch.equal(layers[0].kv_cache, before)


def test_new_caches_are_seen(layers: list[Layer]) -> None:
    batch, sent = metadata([3], [3]), inputs(3)
    for _ in range(2):
        layers[0].kv_cache = new_cache()
        with attention._step({"layer 0": batch}):
            assert ours(0, *sent).any()
        assert layers[0].kv_cache.any()


def plain_layer(**changes: Any) -> Any:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    impl = object.__new__(CPUAttentionBackendImpl)
    fields = {"is_fp8_kv_cache": False, "alibi_slopes": None, "sinks": None}
    for name in fields:
        setattr(impl, name, changes.pop(name, fields[name]))
    usual = {
        "impl": impl,
        "attn_type": "decoder",
        "kv_sharing_target_layer_name": None,
        "query_quant": None,
        "use_direct_call": False,
        "use_mm_prefix": False,
    }
    return SimpleNamespace(**(usual | changes))


@pytest.mark.slow
def test_only_plain_layers_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(kv_transfer_config=None, speculative_config=None)
    monkeypatch.setattr("vllm.config.get_current_vllm_config", lambda: config)
    assert attention._is_plain(plain_layer())
    others: list[dict[str, Any]] = [
        {"impl": SimpleNamespace()},
        {"attn_type": "encoder_only"},
        {"kv_sharing_target_layer_name": "layer 0"},
        {"query_quant": object()},
        {"use_direct_call": True},
        {"use_mm_prefix": True},
        {"is_fp8_kv_cache": True},
        {"alibi_slopes": torch.ones(1)},
        {"sinks": torch.ones(1)},
    ]
    assert not any(attention._is_plain(plain_layer(**other)) for other in others)
    config.speculative_config = object()
    assert not attention._is_plain(plain_layer())
