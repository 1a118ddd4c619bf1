"""Ten architectures, each prepared, trained, imported and served by the real engine; two by another LoRA operator.

`make test` takes those that no other file serves, `make test ALL=1` all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from typer.testing import CliRunner

from adapters.cli import app as adapters_app
from adapters.store.manifest import ComputeRecord, Manifest
from config.dataset import read_split
from config.home import Home
from tests.tiny_architectures import ARCHITECTURES, write_tiny_model
from tests.tiny_llama import RENDERED_AT, tiny_domain, tiny_tokenizer, write_colour_data
from tests.tiny_server import forced, mean_gap, tiny_server
from train.base.prepare import prepare_base
from train.base.quantize import load_causal_lm
from train.data.encode import Encoded, encode
from train.evaluate.fingerprint import answer_logprobs
from train.methods.finishing import cast_model
from train.methods.targets import resolve_target_modules
from train.pipeline import train_and_publish
from train.training import save_adapter

pytestmark = [pytest.mark.engine, pytest.mark.tiny_engine, pytest.mark.slow]

# Where our C++ operator does not compute LoRA but plain torch, or vLLM itself. That one gives a base request in a mixed
# batch the last slot's adapter: of three slots the last stays empty.
OTHER_LORA: dict[str, dict[str, Any]] = {
    "qwen3": {"cpu_lora": "torch"},
    "mistral": {"cpu_lora": "stock", "max_loras": 3, "max_cpu_loras": 3},
}
# Where what sets an architecture apart is served, too, and compared with PEFT: here or in another file.
ALIKE = {
    "llama": "the base of most tests with an engine",
    "qwen2": "test_dora.py",
    "qwen3": "qwen2; with ALL=1 test_dora.py",
    "gemma2": "only with ALL=1",
    "gemma3": "only with ALL=1, in test_soft_prompts.py, too",
    "granite": "cohere",
    "phi3": "mistral",
}
# Mean over the answer tokens of all held-out rows. Weights ten times as large as usual make large logits, whose bf16
# steps are large too.
TOLERANCE_NATS = 0.1


@dataclass(frozen=True)
class Served:
    """A server of one base with a trained and an imported adapter, and what the imported one must answer."""

    http: httpx.Client
    trained: Manifest
    examples: tuple[Encoded, ...]
    imported_logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.exhaustive] * (name in ALIKE)) for name in ARCHITECTURES],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    home = Home(folder / "var")
    prepare_base(str(write_tiny_model(folder / "model", request.param)), "tiny", "nf4", home=home)
    trained = train_and_publish(tiny_domain(write_colour_data(folder / "colours.jsonl")), home).manifest
    rows = read_split(home.datasets / "colours", "test")
    examples = tuple(encode(tiny_tokenizer(), row.messages, RENDERED_AT) for row in rows)
    model = random_adapter(home.bases / "tiny")
    save_adapter(model, folder / "peft", "tiny")
    imported = ["import", str(folder / "peft"), "foreign", "--base", "tiny", "--home", str(home.root)]
    assert CliRunner().invoke(adapters_app, imported).exit_code == 0
    logprobs = all_logprobs(model, examples)
    with model.disable_adapter():
        base_logprobs = all_logprobs(model, examples)
    with tiny_server(folder, home, **OTHER_LORA.get(request.param, {})) as server:
        yield Served(server.http, trained, examples, logprobs, base_logprobs)


def random_adapter(base_folder: Path) -> PeftModel:
    """What another program might have trained, in PEFT's own words."""
    base = load_causal_lm(base_folder, dtype=torch.float32)
    torch.manual_seed(1)
    targets = resolve_target_modules(base, "all-linear")
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    cast_model(model, ComputeRecord(precision="float32", num_threads=torch.get_num_threads()))
    return model.eval()


def all_logprobs(model: PeftModel, examples: Sequence[Encoded]) -> tuple[float, ...]:
    return tuple(logprob for example in examples for logprob in answer_logprobs(model, example))


def forced_logprobs(served: Served, model: str) -> list[float]:
    return [logprob for example in served.examples for logprob in forced(served.http, model, example)]


@pytest.mark.parametrize("model", ["tiny", "colours@1", "foreign@1"])
def test_base_trained_and_imported_adapter_answer_a_chat(served: Served, model: str) -> None:
    messages = [{"role": "system", "content": "Colour?"}, {"role": "user", "content": "item 1 is red"}]
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
    response = served.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    assert response.json()["usage"]["completion_tokens"] > 0


def test_the_trained_adapter_passes_parity(served: Served) -> None:
    rows = served.http.get("/admin/adapters").raise_for_status().json()["adapters"]
    error = next(row["parity_error_nats"] for row in rows if row["adapter"] == served.trained.lora_name)
    assert error is not None
    assert error < TOLERANCE_NATS


def test_the_imported_adapter_is_served_as_peft_computes_it(served: Served) -> None:
    assert mean_gap(served.imported_logprobs, forced_logprobs(served, "foreign@1")) < TOLERANCE_NATS
    assert mean_gap(served.base_logprobs, forced_logprobs(served, "tiny")) < TOLERANCE_NATS
    # It changes the answer, so that the base's would have been told apart.
    assert mean_gap(served.imported_logprobs, list(served.base_logprobs)) > 2 * TOLERANCE_NATS
