"""Map tensor names from wrappers or custom savers to PEFT's names.

PEFT's are `base_model.model.<layer>.lora_A.weight` and `…lora_B.weight`, or `….lora_embedding_A` and `…B`; DoRA adds
`….lora_magnitude_vector`.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.lint.config import LintFinding
from adapters.lint.peft_folder import MAGNITUDE, PREFIX, parse_name
from adapters.lint.words import examples
from adapters.store.strict_json import load_json

CODE = "tensor-names"
"""Of the findings on names."""

_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
}
_SIDES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_MODULES = re.compile(r"\A(module\.)+")
_MAX_DROPPED = 2
_MAX_REASONS = 3
_MAX_PART_CHARS = 80
_FIX = "Import it with `lorikeet adapters import --rename`, or save the unwrapped model with PEFT's save_pretrained."


@dataclass(frozen=True)
class Renames:
    """Corrected names of a file's tensors.

    Args:
        names: PEFT's name of every tensor, by its name in the file.
        odd: Reasons for changes, as `'_orig_mod' of torch.compile`, with the number of tensors.
    """

    names: Mapping[str, str]
    odd: Mapping[str, int]

    @property
    def changed(self) -> dict[str, str]:
        return {old: new for old, new in self.names.items() if old != new}

    @property
    def collisions(self) -> list[str]:
        """New names that several tensors would share."""
        return [name for name, count in Counter(self.names.values()).items() if count > 1]


def plan_renames(names: Collection[str], layers: Collection[str] | None) -> Renames:
    """Find PEFT's names of the tensors.

    Args:
        layers: Full names of the base's layers; None if the base is unknown.
    """
    odd: Counter[str] = Counter()
    renamed = {}
    for name in names:
        renamed[name], reasons = _unwrapped(name, layers or ())
        odd.update(set(reasons))
    if layers is not None:
        renamed, reason = _with_layers_of_base(renamed, layers)
        odd.update({reason: len(renamed)} if reason else {})
    return Renames(renamed, dict(odd))


def check_names(renames: Renames) -> Iterator[LintFinding]:
    """Findings on names: an error if vLLM would not find the layers, a warning if only PEFT's prefix is missing."""
    if renames.collisions:
        yield LintFinding(
            "error",
            CODE,
            f"Several tensors would have the same name, as if one file held several adapters: "
            f"{examples(renames.collisions)}.",
            "Save one adapter with PEFT's save_pretrained.",
        )
        return
    if not renames.changed:
        return
    old, new = next(iter(renames.changed.items()))
    if renames.odd:
        told = [f"{reason} ({count} of {len(renames.names)})" for reason, count in renames.odd.items()]
        reasons = " and ".join(told[:_MAX_REASONS])
        yield LintFinding(
            "error", CODE, f"Tensor names have {reasons}: {examples([old])} must be {examples([new])}.", _FIX
        )
    else:
        yield LintFinding(
            "warning",
            CODE,
            f"{len(renames.changed)} tensor names lack {PREFIX!r}: vLLM reads them, PEFT does not. "
            f"{examples([old])} is {examples([new])} to PEFT.",
            _FIX,
        )


def write_renamed(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Copy a safetensors file with renamed tensors; the data is copied unchanged."""
    with source.open("rb") as reader, target.open("xb") as writer:
        entries = load_json(reader.read(int.from_bytes(reader.read(8), "little")))
        header = json.dumps({names.get(name, name): entry for name, entry in entries.items()}).encode()
        header += b" " * (-len(header) % 8)
        writer.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(reader, writer, 1 << 20)


def _unwrapped(name: str, layers: Collection[str]) -> tuple[str, list[str]]:
    """PEFT's name of one tensor, and why it differs; a layer of the base keeps its name."""
    layer, side = parse_name(name)
    if side and layer in layers:
        return _with_prefix(name), []
    reasons = [f"{part!r} of {_WRAPPERS[part]}" for part in name.split(".") if part in _WRAPPERS]
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    parts, of_adapter = _without_adapter(parts)
    rest, of_prefix = _without_prefixes(".".join(parts))
    is_lora = bool(parse_name(rest)[1])
    return (PREFIX + rest if is_lora or rest != name else name), [*reasons, *of_adapter, *of_prefix]


def _without_adapter(parts: list[str]) -> tuple[list[str], list[str]]:
    """Remove the adapter's name: PEFT saves `lora_A.default.weight` as `lora_A.weight`."""
    match parts:
        case [*layer, "lora_A" | "lora_B" as side, name, "weight"] if name not in _SIDES:
            return [*layer, side, "weight"], [f"the adapter's name {_quoted(name)}"]
        case [*layer, "lora_embedding_A" | "lora_embedding_B" as side, name] if name not in _SIDES:
            return [*layer, side], [f"the adapter's name {_quoted(name)}"]
        case [*layer, "lora_magnitude_vector", name, "weight"] if name not in _SIDES:
            return [*layer, MAGNITUDE], [f"the adapter's name {_quoted(name)}"]
    return parts, []


def _without_prefixes(name: str) -> tuple[str, list[str]]:
    """The name after PEFT's prefix; text before it, a second prefix, and DDP's `module.` are removed."""
    before, _, rest = name.rpartition(PREFIX)
    reasons = [f"{_quoted(before.rstrip('.'))} before {PREFIX!r}"] if before else []
    if rest.startswith("module."):
        reasons.append("'module' of DDP or DeepSpeed")
    return _MODULES.sub("", rest), reasons


def _quoted(part: str) -> str:
    return repr(part[:_MAX_PART_CHARS])


def _with_prefix(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def _with_layers_of_base(renamed: Mapping[str, str], layers: Collection[str]) -> tuple[dict[str, str], str]:
    """The names with another prefix, if only then all of them match layers of the base."""
    found = {old: parse_name(new) for old, new in renamed.items()}
    modules = [module for module, side in found.values() if side]
    if not modules or any(module in layers for module in modules):
        return dict(renamed), ""
    for change, reason in _beginnings(modules):
        if all(change(module) in layers for module in modules):
            return {
                old: PREFIX + change(module) + renamed[old].removeprefix(PREFIX + module) if side else renamed[old]
                for old, (module, side) in found.items()
            }, reason
    return dict(renamed), ""


def _beginnings(modules: Sequence[str]) -> Iterator[tuple[Callable[[str], str], str]]:
    yield "model.{}".format, "no 'model.' before the layer"
    for number in range(1, _MAX_DROPPED + 1):
        dropped = ".".join(modules[0].split(".")[:number])
        yield partial(_dropped, number=number), f"{_quoted(dropped)} before the base's layers"


def _dropped(module: str, number: int) -> str:
    return ".".join(module.split(".")[number:])
