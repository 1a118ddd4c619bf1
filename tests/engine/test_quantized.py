"""Quantized bases from end to end, on a CPU: prepared, trained, published and served in their own tensors.

`make test` takes one of each kind, `make test ALL=1` all.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from adapters.bases import read_base
from adapters.fingerprint import GoldenPrompt, read_fingerprint
from adapters.lint.tensors import read_headers
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from config.load import load_domain
from loadtest.bench.server import running_server
from tests.engine.test_architectures import write_config
from tests.engine.test_serving import forced_logprobs, mean_gap
from tests.live_server import ANSWERS, BASE_NAME, chat, write_domain, write_serve_config
from tests.quantized_models import write_quantized
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import tiny_domain, write_colour_data
from train.base.prepare import prepare_base
from train.base.quantize import load_causal_lm
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Eager: compiled code is the same arithmetic, and to compile takes minutes.
EAGER: dict[str, Any] = {"cpu_compile": False, "quality": {"enabled": False}}
STORED_AS = {"nf4": "U8", "int8": "I8"}


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

    def answer(self, model: str) -> str:
        response = httpx.post(f"{self.url}/v1/chat/completions", json=chat(model), timeout=120).raise_for_status()
        answer: str = response.json()["choices"][0]["message"]["content"]
        return answer

    async def error_nats(self, model: str, adapter: str, wanted: Sequence[Sequence[float]]) -> float:
        """Mean distance of the served log-probabilities of the golden answers from the wanted ones."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            served = [await forced_logprobs(http, model, prompt) for prompt in self.prompts(adapter)]
        return sum(map(mean_gap, wanted, served)) / len(served)


@pytest.fixture(scope="module", params=STORED_AS)
def bitsandbytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real small model in bitsandbytes' tensors, with two adapters trained on them."""
    home = Home(tmp_path_factory.mktemp(request.param))
    prepare_base("smollm2-135m", "quantized", request.param, "bitsandbytes", home=home)
    for name in ANSWERS:
        domain = load_domain(write_domain(home.root / "domains", name))
        train_and_publish(domain.model_copy(update={"base": "quantized"}), home)
    config = write_serve_config(home.root, base="quantized", **EAGER)
    with running_server(config, home.root, home.root / "serve.log") as server:
        yield Served(server.url, home, home.root / "serve.log")


def test_adapters_and_their_base_share_a_batch_on_bitsandbytes_tensors(bitsandbytes: Served) -> None:
    manifest = read_base(bitsandbytes.home.bases / "quantized")
    assert manifest.storage == "bitsandbytes"
    headers = read_headers(bitsandbytes.home.bases / "quantized" / "model.safetensors")
    assert headers["model.layers.0.mlp.up_proj.weight"].dtype == STORED_AS[manifest.quantization]
    models = [BASE_NAME, *ANSWERS] * 3
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(zip(models, pool.map(bitsandbytes.answer, models), strict=True))
    for name, right in ANSWERS.items():
        assert {answer for model, answer in answers if model == name} == {right}
    assert not {answer for model, answer in answers if model == BASE_NAME} & set(ANSWERS.values())
    staged = [path for path in bitsandbytes.home.staged.glob("*/weights.bin") if len(path.parent.name) == 64]
    assert len(staged) == len(ANSWERS)  # mapped by the worker, not read by vLLM


@pytest.mark.anyio
async def test_bitsandbytes_bases_answer_as_in_training(bitsandbytes: Served) -> None:
    """The base finds the golden answers unlikely, and int8 rounds activations by what else is in the batch."""
    most_of_base = {"nf4": 0.25, "int8": 0.5}[read_base(bitsandbytes.home.bases / "quantized").quantization]
    for name in ANSWERS:
        prompts = bitsandbytes.prompts(name)
        assert await bitsandbytes.error_nats(name, name, [prompt.adapter_logprobs for prompt in prompts]) < 0.02
        error = await bitsandbytes.error_nats(BASE_NAME, name, [prompt.base_logprobs for prompt in prompts])
        assert error < most_of_base


def test_bitsandbytes_fills_no_log(bitsandbytes: Served) -> None:
    bitsandbytes.answer(BASE_NAME)
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
    folder = tmp_path_factory.mktemp(request.param)
    plain = write_tiny_model(folder / "plain", "llama")
    write_quantized(plain, folder / "model", request.param)
    home = Home(folder / "var")
    prepare_base(str(folder / "model"), "tiny", home=home)
    train_and_publish(tiny_domain(write_colour_data(folder / "colours.jsonl")), home)
    with running_server(write_config(folder), home.root, folder / "serve.log") as server:
        served = Served(server.url, home, folder / "serve.log")
        yield Prequantized(served, plain, request.param == "w8a8")


@pytest.mark.anyio
async def test_a_base_quantized_elsewhere_is_served_as_it_is(prequantized: Prequantized) -> None:
    served = prequantized.served
    assert "quantization_config" in json.loads((served.home.bases / "tiny" / "config.json").read_text())
    prompts = served.prompts("colours")
    base_error = await served.error_nats("tiny", "colours", [prompt.base_logprobs for prompt in prompts])
    error = await served.error_nats("colours", "colours", [prompt.adapter_logprobs for prompt in prompts])
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
