"""A built data set: its rows, its manifest, and how to read them. Shared by training and by live evaluation."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from config.domain import AnswerConfig, ChatConfig, DefaultsConfig, EvaluationConfig
from config.errors import DatasetError
from config.model import Config

DATASET_MANIFEST_FILE = "manifest.json"
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Message(Config):
    role: Literal["system", "user", "assistant"]
    content: str


class DatasetRow(Config):
    """One example: the conversation (system, user, assistant) and its source fields."""

    messages: tuple[Message, ...]
    input: str
    output: str
    in_scope: bool

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation without its answer, as a client sends it."""
        return self.messages[:-1]


class FewShotExample(Config):
    input: str
    output: str


class DatasetManifest(Config):
    """`manifest.json` of a data set folder; written last, so its presence marks the folder complete."""

    schema_version: Literal[1] = 1
    domain: str
    description: str
    source: str
    source_version: str
    licence: str | None
    chat: ChatConfig
    answer: AnswerConfig
    evaluation: EvaluationConfig
    defaults: DefaultsConfig = DefaultsConfig()
    few_shot: tuple[FewShotExample, ...] = Field(
        description="The same examples of the train split in every few-shot prompt, so that prefixes are cached."
    )
    num_train: int
    num_validation: int
    num_test: int
    num_test_out_of_scope: int
    num_exact_duplicates: int = Field(description="Rows dropped as exact duplicates.")
    num_conflicts: int = Field(description="Rows dropped because their input had conflicting answers.")
    num_near_duplicates: int = Field(description="Training rows dropped as near-duplicates of a held-out row.")
    num_cut: int = Field(description="Inputs truncated to `max_input_chars`.")
    config_sha256: str = Field(
        description="Hash of everything that determines the rows; if equal, no rebuild is needed."
    )
    dataset_sha256: str = Field(description="SHA-256 over the three split files.")
    created_at: str = Field(description="UTC, ISO 8601.")

    @property
    def request_fields(self) -> dict[str, Any]:
        """Request fields of `/v1/chat/completions` for the domain's questions, except the system prompt.

        Used by both evaluation and `version_defaults`.
        """
        fields: dict[str, Any] = {
            "temperature": self.defaults.temperature,
            "top_p": self.defaults.top_p,
            "max_tokens": self.evaluation.max_new_tokens,
            "stop": list(self.evaluation.stop) or None,
        }
        if self.defaults.response_format is not None:
            json_schema = {"name": self.domain, "schema": self.answer.json_schema}
            fields["response_format"] = {"type": self.defaults.response_format, "json_schema": json_schema}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def version_defaults(self) -> dict[str, Any]:
        """The request defaults of a version trained on this data set."""
        return {"system": self.chat.system} | self.request_fields


def conversation(chat: ChatConfig, text: str, answer: str) -> tuple[Message, ...]:
    """The system, user and assistant turns of one example."""
    return (
        Message(role="system", content=chat.system),
        Message(role="user", content=chat.user.replace("{input}", text)),
        Message(role="assistant", content=answer),
    )


def few_shot_messages(manifest: DatasetManifest, text: str) -> tuple[Message, ...]:
    """A prompt for the base model: the fixed examples as earlier turns, then `text`; no answer."""
    shots = [turn for shot in manifest.few_shot for turn in conversation(manifest.chat, shot.input, shot.output)[1:]]
    system, user, _ = conversation(manifest.chat, text, "")
    return (system, *shots, user)


def read_dataset(folder: Path) -> DatasetManifest:
    """The manifest of a built data set.

    Raises:
        DatasetError: The data set is missing, unfinished or unreadable.
    """
    path = folder / DATASET_MANIFEST_FILE
    if not path.is_file():
        raise DatasetError(
            f"Data set {folder.name!r} is missing or unfinished. Build it: "
            f"`lorikeet data build config/domains/{folder.name}.yaml`."
        )
    try:
        return DatasetManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DatasetError(
            f"Data set {folder.name!r}: {DATASET_MANIFEST_FILE} is not readable ({error.errors()[0]['msg']}). "
            "Build it again with `--force`."
        ) from error


def read_split(folder: Path, split: Split) -> list[DatasetRow]:
    """The rows of one split, in file order.

    Raises:
        DatasetError: The file is missing, or a line is not a valid row.
    """
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise DatasetError(f"Data set {folder.name!r} has no {path.name}. Build it again with `--force`.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(DatasetRow.model_validate_json(line))
        except ValidationError as error:
            raise DatasetError(
                f"Data set {folder.name!r}: {path.name} line {number}: {error.errors()[0]['msg']}. "
                "Build it again with `--force`."
            ) from error
    return rows


def verify_dataset(folder: Path) -> DatasetManifest:
    """`read_dataset`, then hash the split files.

    Raises:
        DatasetError: As `read_dataset`, or the rows differ from the manifest.
    """
    manifest = read_dataset(folder)
    found = hash_splits(folder)
    if found != manifest.dataset_sha256:
        raise DatasetError(
            f"Data set {folder.name!r} changed after it was built: SHA-256 {found[:12]}…, its manifest says "
            f"{manifest.dataset_sha256[:12]}…. Build it again with `--force`."
        )
    return manifest


def hash_splits(folder: Path) -> str:
    """SHA-256 over the names and bytes of the three split files."""
    digest = hashlib.sha256()
    for split in SPLITS:
        content = (folder / f"{split}.jsonl").read_bytes()
        digest.update(f"{split} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def rows_to_jsonl(rows: Sequence[DatasetRow]) -> str:
    """One JSON object per line with sorted keys, so that equal rows give equal bytes."""
    return "".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
