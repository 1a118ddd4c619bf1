"""`lorikeet export peft`: a PEFT folder without files of Lorikeet, as other servers take it."""

import json
import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig

from adapters.lint.config import is_soft_prompt
from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from train.export.readme import write_readme
from train.export.version import Version

# What programs that read the file without PEFT look for.
_ALWAYS = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
)


def export_peft(version: Version, folder: Path, *, base_model: str | None) -> None:
    """Write the PEFT folder.

    Args:
        base_model: Hub id or path of the base for the other program; None: the base's source.
    """
    name = base_model or hub_id(version) or version.base.name
    config = _plain_config(read_adapter_config(version.folder)) | {
        "base_model_name_or_path": name,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    shutil.copyfile(version.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    write_readme(version, folder, _text(version, name), library="peft")


def hub_id(version: Version) -> str | None:
    """The hub id that the base was prepared from, if it was."""
    source = version.base.source
    return source if source.count("/") == 1 and " " not in source else None


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without keys at their defaults: an older PEFT refuses a key that it does not know, whatever its value."""
    if is_soft_prompt(config):
        return config
    defaults = LoraConfig().to_dict()
    return {key: value for key, value in config.items() if key in _ALWAYS or value != defaults.get(key)}


def _text(version: Version, base_model: str) -> str:
    kind = "soft prompt" if version.manifest.lora.num_virtual_tokens else "LoRA adapter"
    text = (
        f"A {kind} in PEFT's format, made by `lorikeet export peft` for the base `{base_model}`. "
        "Prompts must use the base's chat template."
    )
    if version.manifest.lora.use_dora:
        text += " It is DoRA: vLLM, SGLang and llama.cpp load only plain LoRA, PEFT and Lorikeet load both."
    if version.base.quantization != "none":
        text += (
            f" It was trained on the base quantized to {version.base.quantization}: on the original weights its answers"
            " may differ a little."
        )
    return text
