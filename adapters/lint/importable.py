"""Prepare a PEFT folder from another tool for publishing: lint it and optionally rename its tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.lint.base_modules import read_base_modules
from adapters.lint.config import MAX_LORA_RANK, LintFinding
from adapters.lint.files import real_file
from adapters.lint.lint import lint_folder, raise_errors
from adapters.lint.peft_folder import WEIGHTS_FILE, read_tensor_headers
from adapters.lint.tensor_names import CODE, plan_renames, write_renamed
from adapters.store.durable import copy_file
from adapters.store.folders import StoreFolders
from adapters.store.version_files import MAX_BYTES, mode_of


@dataclass(frozen=True)
class Importable:
    """A folder that can be published.

    Args:
        folder: The given folder, or a temporary copy with renamed tensors.
        findings: Findings on the given folder, without those that the rename fixed.
        renamed: New tensor names by old ones.
    """

    folder: Path
    findings: tuple[LintFinding, ...]
    renamed: Mapping[str, str]


@contextmanager
def importable(folder: Path, base_folder: Path, folders: StoreFolders, *, rename: bool) -> Iterator[Importable]:
    """Check a folder and yield what can be published.

    Args:
        folders: The store's folders; a copy is made on the same disk.
        rename: Rename the tensors to PEFT's names.

    Raises:
        InvalidAdapterError: It is broken, or a rename would give two tensors the same name.
        UnsupportedAdapterError: vLLM cannot serve it.
    """
    found = lint_folder(folder, base_folder=base_folder, max_lora_rank=MAX_LORA_RANK)
    renamed = _renamed(folder, base_folder) if rename and _is_only_of_names(found) else {}
    findings = tuple(finding for finding in found if not renamed or finding.code != CODE)
    raise_errors(findings, repr(folder.name))
    if not renamed:
        yield Importable(folder, findings, {})
        return
    with folders.staged() as copy:
        for name in MAX_BYTES:
            if (folder / name).is_file() and name != WEIGHTS_FILE:
                copy_file(real_file(folder, name), copy / name, mode=mode_of(name))
        write_renamed(real_file(folder, WEIGHTS_FILE), copy / WEIGHTS_FILE, renamed)
        yield Importable(copy, findings, renamed)


def _is_only_of_names(findings: list[LintFinding]) -> bool:
    """Whether the weights are readable and only their tensor names are wrong."""
    return all(finding.code == CODE for finding in findings if finding.level == "error")


def _renamed(folder: Path, base_folder: Path) -> dict[str, str]:
    """New names by old ones; empty if they are correct, or would collide."""
    renames = plan_renames(read_tensor_headers(folder), read_base_modules(base_folder))
    return {} if renames.collisions else renames.changed
