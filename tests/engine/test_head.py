"""Adapters with a part on the vocabulary, on the real engine: a token has one log-probability, generated or echoed."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_lora_spec
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft
from tests.live_server import BASE, BASE_NAME, LiveServer, client

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

HEAD, EMBEDDING = "colours-head", "colours-embedding"
MODELS = (HEAD, EMBEDDING, "colours", BASE_NAME)
PROMPT = [504, 3575, 282, 4649, 314]
TOLERANCE_NATS = 0.06
TWO_STEPS = 0.016
"""Two steps of a bfloat16 logit, as a share. The LoRA operator sums in 4, 2 or 1 parts by how many rows an
adapter has in the batch (`multiply_rows` in serve/kernels/lora.cpp), so a busy batch rounds in another way."""
NUM_LONG = 12


@pytest.fixture(scope="module", autouse=True)
def published(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`colours` with a part on the head, and with one on the embedding: large enough to be seen in one token."""
    model = json.loads((live.home.bases / BASE / "config.json").read_text())
    shape_a, shape_b = (8, model["hidden_size"]), (model["vocab_size"], 8)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(shape, generator=generator) for shape in (shape_a, shape_b))
    root = tmp_path_factory.mktemp("vocabulary")
    publish(live, root, HEAD, "lm_head", {"lora_A.weight": a * 0.05, "lora_B.weight": b * 0.4})
    parts = {"lora_embedding_A": b.t().contiguous() * 0.3, "lora_embedding_B": a.t().contiguous() * 0.1}
    publish(live, root, EMBEDDING, "model.embed_tokens", parts)


def publish(live: LiveServer, root: Path, name: str, module: str, parts: dict[str, torch.Tensor]) -> None:
    source, folder = Target("colours", 1), root / name
    folder.mkdir()
    config = json.loads((live.store.folder(source) / CONFIG_FILE).read_text())
    config["target_modules"] = [*config["target_modules"], module.rpartition(".")[2]]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    tensors = load_file(live.store.folder(source) / WEIGHTS_FILE)
    save_file(tensors | {f"base_model.model.{module}.{part}": t for part, t in parts.items()}, folder / WEIGHTS_FILE)
    draft = ManifestDraft(
        name=name, base=live.store.manifest(source).base, lora=read_lora_spec(folder), origin="imported"
    )
    live.store.publish(folder, draft, base_folder=live.home.bases / BASE)
    live.store.promote(name, 1)


async def complete(http: httpx.AsyncClient, model: str, prompt: Sequence[int], **more: Any) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "return_token_ids": True,
    }
    response = await http.post("/v1/completions", json=body | more)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return {"token_ids": choice["token_ids"], "logprobs": choice["logprobs"]["token_logprobs"]}


async def echoed(http: httpx.AsyncClient, model: str, prompt: Sequence[int]) -> list[float]:
    """Of the prompt's tokens but the first, which has none."""
    logprobs: list[float] = (await complete(http, model, prompt, echo=True))["logprobs"]
    return logprobs[1 : len(prompt)]


@pytest.mark.parametrize("model", [HEAD, EMBEDDING])
async def test_generated_and_echoed_logprobs_agree(live: LiveServer, model: str) -> None:
    async with client(live) as http:
        generated = await complete(http, model, PROMPT)
        prompt = [*PROMPT, *generated["token_ids"]]
        found, without = await echoed(http, model, prompt), await echoed(http, "colours", prompt)
    assert found[-1] == pytest.approx(generated["logprobs"][0], abs=TOLERANCE_NATS)
    assert max(abs(a - b) for a, b in zip(found, without, strict=True)) > 3 * TOLERANCE_NATS  # the part counts


async def test_short_echoes_in_a_busy_batch_are_as_alone(live: LiveServer) -> None:
    """More rows are sampled than echoed, and of all models."""
    prompts = (PROMPT[:2], PROMPT)
    async with client(live) as http:
        alone = [await echoed(http, model, prompt) for model in MODELS for prompt in prompts]
        asked = [MODELS[number % len(MODELS)] for number in range(NUM_LONG)]
        long = [asyncio.create_task(complete(http, m, PROMPT, max_tokens=40, ignore_eos=True)) for m in asked]
        await asyncio.sleep(0.3)
        busy = await asyncio.gather(*(echoed(http, model, prompt) for model in MODELS for prompt in prompts))
        answers = await asyncio.gather(*long)
    for now, before in zip(busy, alone, strict=True):
        assert now == pytest.approx(before, abs=TOLERANCE_NATS, rel=TWO_STEPS)
    for number, answer in enumerate(answers):
        assert answer["logprobs"][0] == pytest.approx(answers[number % len(MODELS)]["logprobs"][0], abs=TOLERANCE_NATS)
