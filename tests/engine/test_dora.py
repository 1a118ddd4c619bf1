"""DoRA in the real engine, in one batch with plain LoRA and the base: each answers as PEFT computes it.

Qwen2's attention has a bias, which DoRA leaves alone; on Qwen3 plain torch computes, with the code of a GPU.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from adapters.cli import app as adapters_app
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from config.method import DoraMethod
from tests.exported import random_adapter, write_biased_model, write_bpe_model
from tests.tiny_llama import tiny_domain, write_colour_data
from tests.tiny_server import tiny_server
from train.base.prepare import prepare_base
from train.base.quantize import load_causal_lm
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.tiny_engine, pytest.mark.slow]

KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "qwen2 by the operator": (write_biased_model, "native"),
    "qwen3 by torch": (lambda folder: write_bpe_model(folder, "qwen3"), "torch"),
}
# Foreign adapters, as PEFT makes them: random, with magnitudes that change up to twofold.
FOREIGN: dict[str, dict[str, Any]] = {
    "strong": {"use_dora": True, "target_modules": "all-linear"},
    "patterns": {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}, "seed": 1},
    "plain": {"seed": 2},
}
MODELS = ("tiny", "colours@1", *(f"{name}@1" for name in FOREIGN))
PROMPTS = [list(range(first, first + 24)) for first in (10, 60, 110, 160)]
# Mean over tokens: weights ten times as large as usual make large logits, whose bf16 steps are large too.
TOLERANCE_NATS = 0.1


@dataclass(frozen=True)
class Served:
    http: httpx.Client
    store: AdapterStore
    models: dict[str, Any]
    """PEFT's, in float32, of what is served."""


@pytest.fixture(
    scope="module",
    params=["qwen2 by the operator", pytest.param("qwen3 by torch", marks=pytest.mark.exhaustive)],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    write_model, cpu_lora = KINDS[request.param]
    folder = tmp_path_factory.mktemp("dora")
    home = Home(folder / "var")
    prepare_base(str(write_model(folder / "model")), "tiny", "nf4", home=home)
    domain = tiny_domain(write_colour_data(folder / "colours.jsonl"), learning_rate=0.01)
    train_and_publish(domain.model_copy(update={"method": DoraMethod(r=4, lora_alpha=8)}), home)
    for name, options in FOREIGN.items():
        random_adapter(home.bases / "tiny", folder / name, **options)
        words = ["import", str(folder / name), name, "--base", "tiny", "--home", str(home.root)]
        done = CliRunner().invoke(adapters_app, words)
        assert done.exit_code == 0, done.output
    store = AdapterStore(home.adapters)
    base = home.bases / "tiny"
    folders = {str(target): store.folder(target) for target in (Target(name, 1) for name in ("colours", *FOREIGN))}
    models = {"tiny": load_causal_lm(base, dtype=torch.float32)} | {
        name: PeftModel.from_pretrained(load_causal_lm(base, dtype=torch.float32), str(path)).eval()
        for name, path in folders.items()
    }
    with tiny_server(folder, home, max_loras=4, max_cpu_loras=4, cpu_lora=cpu_lora) as server:
        yield Served(server.http, store, models)


def complete(served: Served, model: str, ids: list[int], **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": ids, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | more
    response = served.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def in_one_batch(served: Served, **more: Any) -> dict[str, list[dict[str, Any]]]:
    """Each prompt by each model, all at once and in turns."""
    asked = [(model, ids) for ids in PROMPTS for model in MODELS]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: complete(served, *each, **more), asked))
    found: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    for (model, _), answer in zip(asked, answers, strict=True):
        found[model].append(answer)
    return found


def pefts(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities after each token."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, -1)


def of_prompt(model: Any, ids: list[int]) -> torch.Tensor:
    """PEFT's log-probability of each token of a prompt but the first."""
    return pefts(model, ids)[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)


def told(ids: list[int], answer: dict[str, Any]) -> torch.Tensor:
    """The server's."""
    positions = zip(ids[1:], answer["prompt_logprobs"][1:], strict=True)
    return torch.tensor([position[str(token)]["logprob"] for token, position in positions])


def test_each_model_of_a_batch_answers_as_peft_computes_it(served: Served) -> None:
    answers = in_one_batch(served, max_tokens=1, prompt_logprobs=0)
    base = torch.cat([of_prompt(served.models["tiny"], ids) for ids in PROMPTS])
    gaps, effects = {}, {}
    for model in MODELS:
        want = torch.cat([of_prompt(served.models[model], ids) for ids in PROMPTS])
        got = torch.cat([told(ids, answer) for ids, answer in zip(PROMPTS, answers[model], strict=True)])
        gaps[model], effects[model] = (float((want - other).abs().mean()) for other in (got, base))
    assert max(gaps.values()) < TOLERANCE_NATS, (gaps, effects)
    # Each changes the answer, so that another's would have been told apart.
    assert all(effects[f"{name}@1"] > 4 * TOLERANCE_NATS for name in FOREIGN), (gaps, effects)


def test_greedy_tokens_of_a_batch_are_pefts(served: Served) -> None:
    """Where two tokens are nearly as likely, either may be chosen."""
    answers = in_one_batch(served, max_tokens=8)
    for model in MODELS:
        for ids, answer in zip(PROMPTS, answers[model], strict=True):
            chosen = answer["token_ids"]
            assert len(chosen) == 8
            logprobs = pefts(served.models[model], [*ids, *chosen])[len(ids) - 1 : -1]
            lacking = logprobs.max(-1).values - logprobs.gather(-1, torch.tensor(chosen)[:, None]).squeeze(-1)
            assert lacking.max() < 4 * TOLERANCE_NATS, model


def test_the_trained_version_passes_parity(served: Served) -> None:
    assert served.store.manifest(Target("colours", 1)).lora.use_dora
    rows = served.http.get("/admin/adapters").raise_for_status().json()["adapters"]
    error = next(row["parity_error_nats"] for row in rows if row["adapter"] == "colours@1")
    assert error is not None
    assert error < TOLERANCE_NATS
