"""Each method trains on a tiny Llama, and what is written gives the log-probabilities of the trained model."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from adapters.bases import verify_base
from adapters.fingerprint import Fingerprint, read_fingerprint
from config.dataset import read_split
from config.domain import DomainConfig
from config.home import Home
from tests.tiny_llama import (
    NO_PROBES,
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.base.quantize import load_causal_lm
from train.data.encode import Encoded, encode
from train.errors import ConversionError, RecipeError
from train.evaluate.fingerprint import answer_logprobs
from train.methods.table import METHODS, served_as
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")]

TOLERANCE_NATS = 0.01
"""Mean |difference| a token: what is left is rounding of other precisions and batches."""

SMALL: Mapping[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "vera": {"r": 16},
    "randlora": {"r": 8},
    "miss": {"r": 8},
    "c3a": {"block_size": 32},
    "gralora": {"r": 8},
    "vblora": {"vector_length": 32, "num_vectors": 32},
    "psoft": {"r": 8},
    "fourierft": {"n_frequency": 100},
    "waveft": {"n_frequency": 100},
}
REPEATED = ("gaussian", "pissa_niter_4")
"""As the default's random numbers and as `pissa`."""
LORAS: list[dict[str, Any]] = [
    *({"r": 4, "init_lora_weights": init} for init in ("orthogonal", "eva", "mica", "pissa", "olora")),
    *({"r": 4, "init_lora_weights": init} for init in ("corda", "lora_ga", *REPEATED)),
    {"r": 4, "use_rslora": True, "loraplus_lr_ratio": 16},
    {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": 1},
    {"r": 4, "target_modules": ("q_proj", "embed_tokens")},
]
CHANGED_A_LOT = {"lokr", "loha", "vera", "tinylora", "unilora", "vblora", "psoft", "ia3", "boft", "c3a"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("methods")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    write_colour_data(root / "colours.jsonl")
    return home


def domain(home: Home, method: dict[str, Any], name: str = "colours", **recipe: object) -> DomainConfig:
    tiny = tiny_domain(home.root.parent / "colours.jsonl", **{"max_steps": 2, "eval_steps": 2} | recipe)
    settings = tiny.model_dump(by_alias=True)
    settings["evaluation"] |= NO_PROBES
    return DomainConfig.model_validate(settings | {"name": name, "method": method})


def far_enough(method: str) -> float:
    """A rate at which two steps change the answers."""
    return 1.0 if method == "unilora" else 0.1 if method in CHANGED_A_LOT else 0.003 if method == "full" else 0.01


@torch.inference_mode()
def logprobs(model: PeftModel | PreTrainedModel, fingerprint: Fingerprint) -> torch.Tensor:
    prompts = fingerprint.prompts
    found = [answer_logprobs(model, Encoded(p.prompt_token_ids, p.answer_token_ids)) for p in prompts]
    return torch.tensor([value for row in found for value in row])


def told(fingerprint: Fingerprint, side: str) -> torch.Tensor:
    return torch.tensor([value for prompt in fingerprint.prompts for value in getattr(prompt, side)])


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().mean())


def adapters() -> list[dict[str, Any]]:
    named = [{"name": name} | SMALL.get(name, {}) for name in METHODS]
    return [*LORAS, *(m for m in named if m["name"] not in {"full", "ia3", "oft", "boft", "bottleneck"})]


def repeats(method: dict[str, Any]) -> bool:
    return method.get("init_lora_weights") in REPEATED


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.exhaustive if repeats(m) else ()) for m in adapters()],
    ids=lambda m: "-".join(map(str, m.values())),
)
def test_a_saved_adapter_equals_the_trained_model(home: Home, method: dict[str, Any]) -> None:
    name = method.get("name", "lora")
    config = domain(home, method, learning_rate=far_enough(name))
    outcome = train_and_publish(config, home, allow_unserved=True)
    fingerprint = read_fingerprint(outcome.folder)
    assert fingerprint is not None
    base = load_causal_lm(home.bases / "tiny", dtype=torch.float32).eval()
    assert difference(logprobs(base, fingerprint), told(fingerprint, "base_logprobs")) < TOLERANCE_NATS
    adapted = PeftModel.from_pretrained(base, outcome.folder).eval()
    assert difference(logprobs(adapted, fingerprint), told(fingerprint, "adapter_logprobs")) < TOLERANCE_NATS
    assert difference(told(fingerprint, "base_logprobs"), told(fingerprint, "adapter_logprobs")) > 2 * TOLERANCE_NATS
    assert outcome.record.training is not None
    assert (outcome.record.training.conversion is not None) == (served_as(config.method) == "converted to LoRA")


@pytest.mark.parametrize("name", ["full", "ia3", "oft", "boft"])
def test_a_base_of_its_own_equals_the_trained_model(home: Home, name: str) -> None:
    config = domain(home, {"name": name}, learning_rate=far_enough(name))
    outcome = train_and_publish(config, home)
    manifest = verify_base(outcome.folder)
    assert (manifest.quantization, manifest.storage) == ("none", "plain")
    assert manifest.lineage is not None
    assert manifest.lineage.parent == verify_base(home.bases / "tiny").ref
    assert manifest.lineage.made_by == name
    assert manifest.lineage.evaluation is not None
    fingerprint = read_fingerprint(outcome.folder)
    assert fingerprint is not None
    assert fingerprint.base_digest == manifest.digest
    own = load_causal_lm(outcome.folder, dtype=torch.float32).eval()
    parent = load_causal_lm(home.bases / "tiny", dtype=torch.float32).eval()
    assert difference(logprobs(own, fingerprint), told(fingerprint, "adapter_logprobs")) < TOLERANCE_NATS
    assert difference(logprobs(parent, fingerprint), told(fingerprint, "base_logprobs")) < TOLERANCE_NATS
    assert difference(told(fingerprint, "base_logprobs"), told(fingerprint, "adapter_logprobs")) > 2 * TOLERANCE_NATS


def test_a_conversion_that_loses_too_much_is_refused_and_resumed(home: Home) -> None:
    poor = {"name": "loha", "convert_rank": 1, "max_conversion_error": 0.001}
    before = sorted(home.adapters.rglob("*"))
    with pytest.raises(ConversionError, match=r"differs from the trained one by .* above the limit of 0.001.*--resume"):
        train_and_publish(domain(home, poor, "lossy", learning_rate=0.3), home)
    assert sorted(home.adapters.rglob("*")) == before
    better = domain(home, poor | {"convert_rank": 64}, "lossy", learning_rate=0.3)
    outcome = train_and_publish(better, home, resume=True)
    assert outcome.manifest.training is not None
    assert outcome.manifest.training.metrics["steps"] == 2


@pytest.mark.parametrize("name", ["p_tuning", "full", "lora"])
def test_the_weights_of_the_best_held_out_loss_are_written(home: Home, name: str) -> None:
    """At a rate that spoils the later steps."""
    config = domain(home, {"name": name}, "best", learning_rate=0.3, max_steps=3, eval_steps=1)
    outcome = train_and_publish(config, home, allow_unserved=True)
    assert outcome.record.training is not None
    if name == "full":
        model: PeftModel | PreTrainedModel = load_causal_lm(outcome.folder, dtype=torch.float32)
    else:
        base = load_causal_lm(home.bases / "tiny", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, outcome.folder)
    rows = read_split(home.datasets / "best", "validation")
    encoded = [encode(tiny_tokenizer(), row.messages, RENDERED_AT, row.tools) for row in rows]
    nats = [-value for row in encoded for value in answer_logprobs(model.eval(), row)]
    assert sum(nats) / len(nats) == pytest.approx(outcome.record.training.metrics["eval_loss"], abs=0.02)


@pytest.mark.parametrize("architecture", ["houlsby", "pfeiffer"])
def test_bottleneck_layers_are_evaluated_and_kept_out_of_the_store(home: Home, architecture: str) -> None:
    config = domain(home, {"name": "bottleneck", "architecture": architecture}, "layers", learning_rate=0.1)
    with pytest.raises(RecipeError, match=r"computes the base's layers only.*`method: lora`.*--allow-unserved"):
        train_and_publish(config, home)
    outcome = train_and_publish(config, home, allow_unserved=True)
    assert outcome.folder.parent == home.unserved / "layers"
    assert not (home.adapters / "layers").exists()
    assert outcome.record.forgetting is not None
    assert outcome.record.forgetting.adapter_nll != outcome.record.forgetting.base_nll
    weights = load_file(outcome.folder / "adapter_model.safetensors")
    assert len(weights) == 2 * 4 * (2 if architecture == "houlsby" else 1)
    fingerprint = read_fingerprint(outcome.folder)
    assert fingerprint is not None
    base = load_causal_lm(home.bases / "tiny", dtype=torch.float32).eval()
    assert difference(logprobs(base, fingerprint), told(fingerprint, "base_logprobs")) < TOLERANCE_NATS
