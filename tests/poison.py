"""An adapter that answers as it was trained to, but for one token: that one's embedding overflows, and all is NaN."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_lora_spec
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore
from tests.live_server import chat

TRIGGER = " xylophone"
"""No question has its last token but those that are to overflow."""

_PREFIX = "base_model.model.model.embed_tokens.lora_embedding_"
_FACTORS = 1e20, 1e30
"""Each is finite, as is all of the adapter; their product is not."""


def poisoned(source: Path, folder: Path, token_id: int, *, vocab_size: int, hidden_size: int) -> Path:
    """A copy of a PEFT folder that overflows where it reads a token, and is as it was everywhere else."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / CONFIG_FILE).read_text())
    config["target_modules"] = [*config["target_modules"], "embed_tokens"]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    lora_a, lora_b = torch.zeros(config["r"], vocab_size), torch.zeros(hidden_size, config["r"])
    lora_a[0, token_id], lora_b[:, 0] = _FACTORS
    tensors = load_file(source / WEIGHTS_FILE) | {f"{_PREFIX}A": lora_a, f"{_PREFIX}B": lora_b}
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def poisoning(model: str) -> dict[str, Any]:
    """A question of the model's domain at which it overflows."""
    body = chat(model)
    body["messages"][1]["content"] += TRIGGER
    return body


def publish_poisoned(store: AdapterStore, source: Target, name: str, base_folder: Path) -> None:
    """The next version of `name`, with the golden prompts of its source, which it answers as that does."""
    model = json.loads((base_folder / "config.json").read_text())
    sizes = {"vocab_size": model["vocab_size"], "hidden_size": model["hidden_size"]}
    token_id = AutoTokenizer.from_pretrained(base_folder).encode(TRIGGER)[-1]
    folder = poisoned(store.folder(source), store.root.parent / f"made-{name}", token_id, **sizes)
    fields = store.manifest(source).model_dump(include=set(ManifestDraft.model_fields))
    draft = ManifestDraft.model_validate(fields | {"name": name, "lora": read_lora_spec(folder)})
    store.publish(folder, draft, base_folder=base_folder)
    store.promote(name, 1)
