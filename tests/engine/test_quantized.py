"""Quantized bases from end to end, on a CPU: prepared, trained, published and served in their own tensors.

`make test` takes one of each kind, `make test ALL=1` all.
"""

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from adapters.bases import read_base
from adapters.fingerprint import GoldenPrompt, read_fingerprint
from adapters.lint.tensors import read_headers
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from serve.engine.cpu.prequantized import has_exact_int8, has_packed_kernel
from tests.engine.test_serving import forced_logprobs, mean_gap
from tests.quantized_models import write_quantized
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import tiny_domain, write_colour_data
from tests.tiny_server import tiny_server
from train.base.prepare import prepare_base
from train.base.quantize import load_causal_lm
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.tiny_engine, pytest.mark.slow]

STORED_AS = {"nf4": "U8", "int8": "I8"}
ADAPTERS = {"colours": 0.01, "others": 0.1}
"""And their learning rates, so that they answer differently."""


@dataclass(frozen=True)
class Served:
    """A server, its state folder, and the log up to now."""

    url: str
    home: Home
    log_file: Path

    def prompts(self, adapter: str) -> Sequence[GoldenPrompt]:
        found = read_fingerprint(AdapterStore(self.home.adapters).folder(Target(adapter, 1)))
        assert found is not None
        return found.prompts

    async def error_nats(self, model: str, adapter: str) -> float:
        """Mean distance of the served log-probabilities of the golden answers from those of training."""
        prompts = self.prompts(adapter)
        wanted = [prompt.base_logprobs if model == "tiny" else prompt.adapter_logprobs for prompt in prompts]
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            served = await asyncio.gather(*(forced_logprobs(http, model, prompt) for prompt in prompts))
        return sum(map(mean_gap, wanted, served)) / len(served)


@pytest.fixture(scope="module", params=["nf4", pytest.param("int8", marks=pytest.mark.exhaustive)])
def bitsandbytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A base in bitsandbytes' tensors, with two adapters trained on them."""
    folder = tmp_path_factory.mktemp(request.param)
    home = Home(folder / "var")
    prepare_base(str(write_tiny_model(folder / "model", "llama")), "tiny", request.param, "bitsandbytes", home=home)
    data = write_colour_data(folder / "colours.jsonl")
    for name, learning_rate in ADAPTERS.items():
        train_and_publish(tiny_domain(data, learning_rate=learning_rate).model_copy(update={"name": name}), home)
    with tiny_server(folder, home) as server:
        yield Served(server.url, home, server.log_file)


@pytest.mark.anyio
async def test_adapters_and_their_base_share_a_batch_on_bitsandbytes_tensors(bitsandbytes: Served) -> None:
    """Each answers as in training; int8 rounds activations by what else is in the batch."""
    manifest = read_base(bitsandbytes.home.bases / "tiny")
    assert manifest.storage == "bitsandbytes"
    headers = read_headers(bitsandbytes.home.bases / "tiny" / "model.safetensors")
    assert headers["model.layers.0.mlp.up_proj.weight"].dtype == STORED_AS[manifest.quantization]
    asked = [(model, adapter) for adapter in ADAPTERS for model in ("tiny", adapter)]
    errors = await asyncio.gather(*(bitsandbytes.error_nats(*pair) for pair in asked))
    assert max(errors) < {"nf4": 0.1, "int8": 0.5}[manifest.quantization], errors
    others = [await bitsandbytes.error_nats(*pair) for pair in itertools.permutations(ADAPTERS)]
    assert min(others) > 2 * max(errors), (others, errors)  # one adapter's answer for another's would be seen
    staged = [path for path in bitsandbytes.home.staged.glob("*/weights.bin") if len(path.parent.name) == 64]
    assert len(staged) == len(ADAPTERS)  # mapped by the worker, not read by vLLM


@pytest.mark.anyio
async def test_bitsandbytes_fills_no_log(bitsandbytes: Served) -> None:
    await bitsandbytes.error_nats("colours", "colours")
    log = bitsandbytes.log_file.read_text()
    assert "Loaded colours@1" in log
    assert "MatMul8bitLt" not in log
    assert "kernels-community" not in log


@dataclass(frozen=True)
class Prequantized:
    """A model that another program quantized, as it is served; and what it was made from."""

    served: Served
    plain: Path
    rounds_activations: bool


@pytest.fixture(
    scope="module",
    params=[
        "gptq",
        "w8a8",
        *(pytest.param(form, marks=pytest.mark.exhaustive) for form in ("awq", "int4", "int4-zeros")),
    ],
)
def prequantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prequantized]:
    if not (has_exact_int8() if request.param == "w8a8" else has_packed_kernel()):
        pytest.skip(f"this CPU has no instructions for {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    plain = write_tiny_model(folder / "plain", "llama")
    write_quantized(plain, folder / "model", request.param)
    home = Home(folder / "var")
    prepare_base(str(folder / "model"), "tiny", home=home)
    train_and_publish(tiny_domain(write_colour_data(folder / "colours.jsonl")), home)
    with tiny_server(folder, home) as server:
        yield Prequantized(Served(server.url, home, server.log_file), plain, request.param == "w8a8")


@pytest.mark.anyio
async def test_a_base_quantized_elsewhere_is_served_as_it_is(prequantized: Prequantized) -> None:
    served = prequantized.served
    assert "quantization_config" in json.loads((served.home.bases / "tiny" / "config.json").read_text())
    prompts = served.prompts("colours")
    base_error = await served.error_nats("tiny", "colours")
    error = await served.error_nats("colours", "colours")
    assert max(error, base_error) < (0.25 if prequantized.rounds_activations else 0.1)
    changed = mean_gap_of_the_plain_model(prequantized.plain, prompts)
    assert prequantized.rounds_activations or changed > 5 * base_error  # 4 bits move it, and are what is served


def mean_gap_of_the_plain_model(plain: Path, prompts: Sequence[GoldenPrompt]) -> float:
    """How far rounding the weights has moved the golden answers' log-probabilities."""
    model = load_causal_lm(plain).eval()
    gaps = []
    for prompt in prompts:
        ids = torch.tensor([[*prompt.prompt_token_ids, *prompt.answer_token_ids]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        gaps.append(mean_gap(prompt.base_logprobs, logprobs[-len(prompt.answer_token_ids) :].tolist()))
    return sum(gaps) / len(gaps)
