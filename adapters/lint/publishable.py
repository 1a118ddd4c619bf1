"""Checks of a PEFT folder and its draft before publishing."""

from pathlib import Path

from adapters.bases import read_base
from adapters.errors import BaseModelMismatchError, InvalidAdapterError
from adapters.fingerprint import FINGERPRINT_FILE, read_fingerprint
from adapters.lint.config import MAX_LORA_RANK
from adapters.lint.lint import REWARD_MODEL, lint_folder, raise_errors
from adapters.lint.peft_folder import read_lora_spec
from adapters.store.manifest import ManifestDraft
from adapters.store.strict_json import load_json
from adapters.store.version_files import EVALUATION_FILE, HELD_OUT_FILE


def check_publishable(source: Path, draft: ManifestDraft, base_folder: Path | None) -> None:
    """Raise unless the folder can be published with this draft.

    Raises:
        InvalidAdapterError: The folder is broken, or contradicts the draft.
        UnsupportedAdapterError: vLLM cannot serve it.
        BaseModelMismatchError: Its fingerprint or `base_folder` belongs to another base.
    """
    if base_folder is not None:
        _check_same_base(draft, read_base(base_folder).digest, f"the base {base_folder.name!r}")
    findings = lint_folder(source, base_folder=base_folder, max_lora_rank=MAX_LORA_RANK)
    if draft.lora.task == "SEQ_CLS":  # to be named by other runs, and refused by servers
        findings = [finding for finding in findings if finding.code != REWARD_MODEL]
    raise_errors(findings, f"Adapter {draft.name!r}")
    _check_spec(source, draft)
    _check_fingerprint(source, draft)
    _check_held_out(source, draft)
    _check_items(source, draft)


def _check_spec(source: Path, draft: ManifestDraft) -> None:
    found = read_lora_spec(source)
    if found != draft.lora:
        raise InvalidAdapterError(
            f"The draft of {draft.name!r} says {draft.lora!r}, but its folder holds {found!r}. "
            "Take the draft's `lora` from read_lora_spec(folder)."
        )


def _check_fingerprint(source: Path, draft: ManifestDraft) -> None:
    try:
        fingerprint = read_fingerprint(source)
    except InvalidAdapterError as error:
        raise InvalidAdapterError(f"The {FINGERPRINT_FILE} of {draft.name!r} cannot be used. {error}") from error
    if fingerprint is not None:
        _check_same_base(draft, fingerprint.base_digest, "its fingerprint")


def _check_held_out(source: Path, draft: ManifestDraft) -> None:
    """Check that the held-out questions are one strict JSON object; the server that reads them checks their content."""
    path = source / HELD_OUT_FILE
    if not path.exists():
        return
    try:
        held_out = load_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(
            f"The {HELD_OUT_FILE} of {draft.name!r} is not valid JSON: {error}. Write it again."
        ) from error
    if not isinstance(held_out, dict):
        raise InvalidAdapterError(f"The {HELD_OUT_FILE} of {draft.name!r} must hold a JSON object. Write it again.")


def _check_items(source: Path, draft: ManifestDraft) -> None:
    """Check that each line of the evaluation's items is one strict JSON object; who reads them checks their content."""
    path = source / EVALUATION_FILE
    if draft.evaluation is None or not path.exists():  # without an evaluation, a file of that name is not copied
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            is_object = isinstance(load_json(line), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise InvalidAdapterError(
                f"Line {number} of the {EVALUATION_FILE} of {draft.name!r} must be a JSON object. Write it again."
            )


def _check_same_base(draft: ManifestDraft, digest: str, subject: str) -> None:
    if digest != draft.base.digest:
        raise BaseModelMismatchError(
            f"Adapter {draft.name!r} was made for the base {draft.base.name!r} with digest "
            f"{draft.base.digest[:12]}, but {subject} has {digest[:12]}. "
            "Train it on this base, or give its own."
        )
