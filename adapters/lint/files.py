"""Lint of the files in a PEFT folder: links, sizes, and files that trainers leave beside an adapter."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from adapters.errors import InvalidAdapterError
from adapters.lint.config import LintFinding
from adapters.lint.foreign import PICKLE_SUFFIXES, natural
from adapters.lint.peft_folder import WEIGHTS_FILE
from adapters.store.version_files import MAX_BYTES, find_oversized

# Beside any pickle and weights of another name.
_TRAINERS_FILES = (
    "trainer_state.json", "zero_to_fp32.py", "latest", "*.distcp", "*.npz", "global_step*", "*_fsdp_*", "runs",
    "wandb", "events.out.tfevents.*", "optimizer_*", "checkpoint-*", "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
_TOKENIZERS_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "vocab.json")
_MAX_GROUPS = 12


def check_files(folder: Path) -> Iterator[LintFinding]:
    """Findings on links that leave the folder, files that are too large, and files that are not copied."""
    if folder.is_symlink():
        yield _linked(folder, "Give the folder that it points to.")
    for name in MAX_BYTES:
        if (folder / name).is_symlink() and not _leads_to_blob(folder / name):
            yield _linked(folder / name, "Replace it with a copy.")
    for name, size_bytes, largest in find_oversized(folder):
        yield LintFinding(
            "error", "too-large", f"{name!r} has {size_bytes} bytes; the limit is {largest}.", "Make it smaller."
        )
    yield from _not_copied(folder)


def real_file(folder: Path, name: str) -> Path:
    """Resolve one of the folder's files to the path of its bytes.

    Raises:
        InvalidAdapterError: It is a link that leaves the folder.
    """
    path = folder / name
    if not path.is_symlink():
        return path
    if not _leads_to_blob(path):
        raise InvalidAdapterError(str(_linked(path, "Replace it with a copy.")))
    return path.resolve()


def _leads_to_blob(link: Path) -> bool:
    """Whether it is a link within a hub cache to a plain file of the same repository.

    There, `models--org--name/snapshots/REVISION/…` holds links to `models--org--name/blobs/…`.
    """
    try:
        target, folder = link.resolve(strict=True), link.parent.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return False
    repository = _hub_repository(folder)
    return repository is not None and target.is_file() and target.is_relative_to(repository / "blobs")


def _hub_repository(folder: Path) -> Path | None:
    for path in folder.parents:
        if path.name == "snapshots" and path.parent.name.startswith("models--"):
            return path.parent
    return None


def _linked(link: Path, fix: str) -> LintFinding:
    target = str(link.readlink())[:300]
    where = "" if link.exists() else ", which does not exist"
    return LintFinding("error", "symlink", f"{link.name!r} is a symbolic link to {target!r}{where}.", fix)


def _not_copied(folder: Path) -> Iterator[LintFinding]:
    names = sorted((path.name for path in folder.iterdir()) if folder.is_dir() else [], key=natural)
    groups: dict[str, list[str]] = {}
    for name in names:
        if _is_left_by_trainer(name):
            groups.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    shown = list(groups.values())
    if len(shown) > _MAX_GROUPS:
        shown[_MAX_GROUPS - 1 :] = [[name for group in shown[_MAX_GROUPS - 1 :] for name in group]]
    for group in shown:
        yield LintFinding("warning", "trainer-file", _left(folder, group))
    if any(name in _TOKENIZERS_FILES for name in names):
        yield LintFinding(
            "warning", "tokenizer", "The folder's own tokenizer and chat template are not used; the base's are."
        )


def _is_left_by_trainer(name: str) -> bool:
    if name in MAX_BYTES:
        return False
    return Path(name).suffix in PICKLE_SUFFIXES or any(fnmatch(name, pattern) for pattern in _TRAINERS_FILES)


def _left(folder: Path, names: Sequence[str]) -> str:
    """`'rng_state_0.pth' … 'rng_state_7.pth' (8 files) belong to a trainer and are not copied.`"""
    if Path(names[0]).stem == Path(WEIGHTS_FILE).stem:
        return f"{names[0]!r} is not copied: the weights are those of {WEIGHTS_FILE}."
    if len(names) == 1:
        return f"{names[0]!r} belongs to a trainer and is not copied."
    kind = "folders" if (folder / names[0]).is_dir() else "files"
    return f"{names[0]!r} … {names[-1]!r} ({len(names)} {kind}) belong to a trainer and are not copied."
