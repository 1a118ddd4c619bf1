"""Recognise folders and files of other tools by names and first bytes, and say how to convert them.

Nothing is loaded: at most a file's first bytes, or a safetensors header, are read.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapters.errors import InvalidAdapterError
from adapters.lint.config import LintFinding
from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from adapters.lint.tensors import read_headers
from adapters.lint.words import examples
from adapters.store.strict_json import load_json

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

_PEEKED_BYTES = 256
_MAX_STATE_BYTES = 64 << 20  # a trainer's log of a long run
_AGAIN = "Download it again, as a file."
_FROM_PEFT = "Give the PEFT folder that it was made from, or train with PEFT."
_NUMBERED = re.compile(r"(.*?)(\d+)")
_ADAPTER_PICKLE = re.compile(r"(adapter|lora).*\.(bin|pt|pth|pkl|pickle|ckpt)|.+\.lora")
_SHARDED_STATE = ("global_step*", "*.distcp", "*_fsdp_*", "zero_to_fp32.py")
_MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "consolidated*.safetensors")
_LORA_NAME = re.compile(r"\blora_(embedding_)?[AB]\b")
_IMAGE_NAME = re.compile(r"(lora_(unet|te\d?|transformer)_|(unet|transformer|text_encoder(_\d)?)\.)")
_MLX_NAME = re.compile(r"\.lora_[ab]$")


def look_for_foreign(folder: Path) -> LintFinding | None:
    """LintFinding that says what a folder is if it is not a readable PEFT folder; None if it may be one."""
    if folder.is_file():
        return _of_file(folder)
    if not folder.exists() and not folder.is_symlink():
        return _unreadable(f"There is no folder {str(folder)!r}.", "Check the path.")
    for path in (folder / CONFIG_FILE, folder / WEIGHTS_FILE):
        if path.is_file() and (problem := _not_downloaded(path)):
            return problem
    if not folder.is_dir() or (folder / WEIGHTS_FILE).is_file():
        return None
    return next(_formats(folder), None)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `checkpoint-9` before `checkpoint-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_file(path: Path) -> LintFinding:
    what = {".gguf": "a GGUF file of llama.cpp", ".safetensors": "one file of an adapter"}
    kind = "a pickle" if path.suffix in PICKLE_SUFFIXES else what.get(path.suffix, "a file")
    return LintFinding(
        "error",
        "unreadable",
        f"{path.name!r} is {kind}, not a PEFT folder.",
        f"Give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}.",
    )


def _not_downloaded(path: Path) -> LintFinding | None:
    """LintFinding on a file whose download or copy failed: a pointer, a web page, or an unreadable file."""
    try:
        with path.open("rb") as file:
            first = file.read(_PEEKED_BYTES)
    except OSError as error:
        return _unreadable(f"{path.name!r} cannot be read: {error.strerror}.", "Make it readable.")
    if path.suffix == ".safetensors" and first[8:9] == b"{":  # after the length of its header, which may be any bytes
        return None
    start = first.lstrip().lower()
    if not start:
        return _unreadable(f"{path.name!r} is empty.", _AGAIN)
    if start.startswith(b"version https://git-lfs"):
        fix = "Run `git lfs pull` in the clone, or download the file itself."
        return _unreadable(f"{path.name!r} is a Git LFS pointer; the file itself was not downloaded.", fix)
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        fix = "Download the file itself; a gated or private repository requires a token."
        return _unreadable(f"{path.name!r} is a web page, not the file.", fix)
    if start.startswith(b"gguf"):
        return _unreadable(f"{path.name!r} is a GGUF file of llama.cpp under another name.", _FROM_PEFT)
    if path.suffix == ".safetensors" and start.startswith((b"pk\x03\x04", b"\x80")):
        return _pickled([path.name])
    return None


def _formats(folder: Path) -> Iterator[LintFinding]:
    """Possible explanations of a folder without adapter weights, the likeliest first."""
    names = sorted((path.name for path in folder.iterdir()), key=natural)
    if adapters := _adapters_in(folder):
        yield _parent(folder, adapters)
    if shards := [name for name in names if re.fullmatch(r"adapter_model-\d+-of-\d+\.safetensors", name)]:
        yield _unreadable(
            f"The weights are in {len(shards)} shards, {shards[0]!r} to {shards[-1]!r}; wanted: {WEIGHTS_FILE}.",
            "Join them: load each with safetensors.torch.load_file, and save_file all tensors together.",
        )
    if mlx := [name for name in names if re.fullmatch(r"(\d+_)?adapters\.(safetensors|npz)", name)]:
        yield _mlx(mlx[-1])
    if gguf := [name for name in names if name.endswith(".gguf")]:
        yield _unreadable(f"{gguf[0]!r} is a GGUF file of llama.cpp.", _FROM_PEFT)
    if pickles := [name for name in names if _ADAPTER_PICKLE.fullmatch(name)]:
        yield _pickled(pickles)
    if whole := [path.name for pattern in _MODEL_FILES for path in folder.glob(pattern)]:
        yield _whole_model(sorted(whole, key=natural))
    for name in names:
        if name.endswith(".safetensors") and (folder / name).is_file():
            yield _other_safetensors(folder / name)
    if state := [path.name for pattern in _SHARDED_STATE for path in folder.glob(pattern)]:
        yield _unreadable(
            f"The weights exist only as a trainer's state of several processes, {state[0]!r}.",
            "Gather them (FSDP: `accelerate merge-weights`; DeepSpeed: zero_to_fp32.py), and save the adapter with "
            "PEFT's save_pretrained.",
        )


def _adapters_in(folder: Path) -> list[str]:
    """Subfolders, one or two levels deep, that look like adapters: checkpoints, named adapters, hub snapshots."""
    found = [path for pattern in (f"*/{CONFIG_FILE}", f"*/*/{CONFIG_FILE}") for path in folder.glob(pattern)]
    return sorted((path.parent.relative_to(folder).as_posix() for path in found), key=natural)


def _parent(folder: Path, names: Sequence[str]) -> LintFinding:
    latest, best = _latest(folder, names), _best(folder, names)
    advice = [f"the latest, {str(folder / latest)!r}"] if latest else []
    if best == latest and best:
        advice = [f"the latest and best, {str(folder / best)!r}"]
    elif best:
        advice.append(f"the best, {str(folder / best)!r}")
    shown = examples(tuple(map(repr, names)))
    return LintFinding(
        "error",
        "parent-folder",
        f"{folder.name!r} is not an adapter, but contains {len(names)}: {shown}.",
        f"Give {' or '.join(advice) or repr(str(folder / names[-1]))}.",
    )


def _latest(folder: Path, names: Sequence[str]) -> str | None:
    """The last of `checkpoint-20`, `checkpoint-40`, or a hub cache's `main`; None if there is neither."""
    branch = folder / "refs" / "main"
    if branch.is_file() and branch.stat().st_size < _PEEKED_BYTES:
        snapshot = f"snapshots/{branch.read_text(errors='replace').strip()}"
        return snapshot if snapshot in names else None
    matches = [_NUMBERED.fullmatch(name) for name in names]
    prefixes = {match[1] if match else None for match in matches}
    return names[-1] if len(prefixes) == 1 and None not in prefixes else None


def _best(folder: Path, names: Sequence[str]) -> str | None:
    """The best checkpoint according to the newest readable trainer state."""
    for path in (folder, *(folder / name for name in reversed(names))):
        file = path / "trainer_state.json"
        try:
            state = load_json(file.read_bytes()) if file.is_file() and file.stat().st_size < _MAX_STATE_BYTES else None
        except (OSError, ValueError, RecursionError):
            continue
        best = state.get("best_model_checkpoint") if isinstance(state, dict) else None
        if isinstance(best, str):
            name = re.split(r"[/\\]", best)[-1]
            return name if name in names else None
    return None


def _mlx(name: str) -> LintFinding:
    return _unreadable(
        f"{name!r} is an adapter of MLX.",
        "Train with PEFT, or convert it: MLX's lora_a and lora_b, transposed, are PEFT's lora_A.weight and "
        "lora_B.weight, and its scale is lora_alpha / r.",
    )


def _pickled(names: Sequence[str]) -> LintFinding:
    return LintFinding(
        "error",
        "pickle",
        f"The weights exist only as {examples(tuple(map(repr, names)))}: a pickle, which can run code when it is "
        "loaded.",
        "If you trust it, load the adapter with PEFT and save it with save_pretrained(folder, "
        "safe_serialization=True).",
    )


def _whole_model(names: Sequence[str]) -> LintFinding:
    return _unreadable(
        f"{names[0]!r} is a whole model, not an adapter.",
        "Serve it as a base of its own (`lorikeet base prepare FOLDER`), or give the LoRA before it was merged.",
    )


def _other_safetensors(path: Path) -> LintFinding:
    """A file under another name than PEFT's, by the names of its tensors."""
    if problem := _not_downloaded(path):
        return problem
    try:
        names = list(read_headers(path))
    except InvalidAdapterError as error:
        return _unreadable(str(error))
    if path.name == "pytorch_lora_weights.safetensors" or any(map(_IMAGE_NAME.match, names)):
        return _unreadable(
            f"{path.name!r} is a LoRA of an image model (Diffusers, kohya).", "Lorikeet serves only language models."
        )
    if any(map(_MLX_NAME.search, names)):
        return _mlx(path.name)
    if any(map(_LORA_NAME.search, names)):
        return _unreadable(
            f"The LoRA weights are in {path.name!r}; {WEIGHTS_FILE} and {CONFIG_FILE} are required.",
            f"Rename it to {WEIGHTS_FILE}, beside its {CONFIG_FILE}.",
        )
    return _unreadable(f"{path.name!r} contains no LoRA weights, but {examples(names)}.", _FROM_PEFT)


def _unreadable(message: str, fix: str = "") -> LintFinding:
    return LintFinding("error", "unreadable", message, fix)
