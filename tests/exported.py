"""A home with a tiny base and LoRA versions with random weights of every kind that PEFT scales in its own way."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.bases import read_base
from adapters.lint.peft_folder import read_lora_spec
from adapters.store.manifest import Manifest, ManifestDraft, RequestDefaults
from adapters.store.store import AdapterStore
from config.home import Home
from tests.tiny_architectures import write_tiny_model
from train.base.quantize import load_causal_lm

NUM_TOKENS = 272
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "w"), ("o", "r"), ("1", "2"), ("i", "n")]
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DEFAULTS = RequestDefaults(system="Colour?", temperature=0.0, max_tokens=8, stop=("\n",))


def write_bpe_model(folder: Path, architecture: str = "llama") -> Path:
    """A tiny model whose tokenizer has a few merges, and splits text as GPT-2's does."""
    write_tiny_model(folder, architecture)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for left, right in MERGES:
        content["model"]["vocab"][left + right] = len(content["model"]["vocab"])
    content["model"]["merges"] = MERGES
    content["pre_tokenizer"] = PRE_TOKENIZER
    path.write_text(json.dumps(content))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    model.resize_token_embeddings(NUM_TOKENS, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def random_adapter(base_folder: Path, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """A PEFT folder whose A and B are random, so that the adapter changes every answer; magnitudes up to twofold."""
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    config = LoraConfig(**fields | options)
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.5, 2)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if "lora_" in name}
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    return folder


def write_biased_model(folder: Path) -> Path:
    """A tiny Qwen2, whose query, key and value layers have a bias; the random one that transformers makes is zero."""
    write_bpe_model(folder, "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def publish(home: Home, folder: Path, name: str, base: str = "tiny", **fields: Any) -> Manifest:
    base_folder = home.bases / base
    draft = ManifestDraft(
        name=name,
        base=read_base(base_folder).ref,
        lora=read_lora_spec(folder),
        defaults=fields.pop("defaults", DEFAULTS),
        **fields,
    )
    return AdapterStore(home.adapters).publish(folder, draft, base_folder=base_folder)


def adapted(base_folder: Path, folder: Path) -> PeftModel:
    """PEFT's own model of base and adapter, in float32."""
    base = load_causal_lm(base_folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(folder)).eval()
