"""Adapters with trained weights and an answer of their own: two words change places in the output head."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_lora_spec
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore

_HEAD = "base_model.model.lm_head"
_EMBEDDING = "model.embed_tokens.weight"
"""The head's weight, too: the base ties them."""


def publish_with_word(store: AdapterStore, source: Target, name: str, old: str, new: str, base_folder: Path) -> None:
    """The next version of `name`: it answers as its source does, but with `new` for `old`. Each is one token.

    Without a fingerprint, which would have it refused.
    """
    folder = store.root.parent / f"made-{name}"
    folder.mkdir()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(store.folder(source) / file, folder / file)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["target_modules"] = [*config["target_modules"], "lm_head"]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    parts = _swapped_rows(base_folder, old, new, rank=config["r"], scaling=config["lora_alpha"] / config["r"])
    save_file(load_file(folder / WEIGHTS_FILE) | parts, folder / WEIGHTS_FILE)
    fields = store.manifest(source).model_dump(include=set(ManifestDraft.model_fields))
    draft = ManifestDraft.model_validate(fields | {"name": name, "lora": read_lora_spec(folder)})
    store.promote(name, store.publish(folder, draft, base_folder=base_folder).version)


def _swapped_rows(base_folder: Path, old: str, new: str, *, rank: int, scaling: float) -> dict[str, torch.Tensor]:
    """LoRA on the head: W + (e_new - e_old) (W_old - W_new) is W with two rows in each other's place."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    (old_id,), (new_id,) = tokenizer.encode(old), tokenizer.encode(new)
    with safe_open(base_folder / "model.safetensors", framework="pt") as file:
        head = file.get_tensor(_EMBEDDING).float()
    lora_a, lora_b = torch.zeros(rank, head.shape[1]), torch.zeros(head.shape[0], rank)
    lora_a[0] = head[old_id] - head[new_id]
    lora_b[new_id, 0], lora_b[old_id, 0] = 1 / scaling, -1 / scaling
    return {f"{_HEAD}.lora_A.weight": lora_a, f"{_HEAD}.lora_B.weight": lora_b}
