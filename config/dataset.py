"""A built data set: its rows, its manifest, and how to read them. Shared by training and by live evaluation."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from config.dataset_types import DatasetType as DatasetType
from config.domain import AnswerConfig, ChatConfig, DefaultsConfig, EvaluationConfig
from config.errors import DatasetError
from config.json_lines import numbered_lines
from config.model import Config

DATASET_MANIFEST_FILE = "manifest.json"
FINDINGS_FILE = "findings.jsonl"
CURRENT_FILE = "current"
"""In a domain's folder: the name of the version that is read, written by renaming."""

FEEDBACK_SUFFIX = "-feedback"
"""After a domain's name: the name of its data set of samples."""

DIGEST_CHARS = 12
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class FunctionCall(Config):
    name: str
    arguments: dict[str, Any]


class ToolCall(Config):
    """One call of a tool by the assistant, as in OpenAI's chat format; `arguments` is an object, not its JSON text."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Config):
    """One turn of a conversation.

    `weight` is that of OpenAI's fine-tuning format: 0 keeps an assistant's turn as context and does not train it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    weight: Literal[0, 1] = 1

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates take it: without unset fields and weight, arguments as objects."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"weight"})
        for call in fields.get("tool_calls", ()):
            call["type"] = "function"
        return {"role": self.role, "content": self.content} | fields

    def for_request(self) -> dict[str, Any]:
        """The turn as `/v1/chat/completions` takes it: arguments as JSON text."""
        turn = self.for_template()
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return turn


class Origin(Config):
    """Where a row came from: a file by its name, and the number of its line or record, from 1."""

    file: str
    line: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


class DatasetRow(Config):
    """One example of a prompt-completion data set: a conversation whose last turn is the answer that is scored."""

    type: Literal["prompt_completion"] = "prompt_completion"
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = Field((), description="Tool definitions, as in `/v1/chat/completions`.")
    input: str = Field(description="Text of the question: the last user turn, before `chat.user` is applied.")
    output: str = Field(description="Text of the answer: the last turn.")
    in_scope: bool = True
    is_synthetic: bool = Field(False, description="Written by a model; such rows are only in the training split.")
    fields: dict[str, str] = Field({}, description="Values of the columns of `evaluation.slice_by`.")
    origin: Origin | None = Field(None, description="None: a packaged source.")

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation without its answer, as a client sends it."""
        return self.messages[:-1]


class FewShotExample(Config):
    input: str
    output: str


class FileRecord(Config):
    """A file by its content: one that was read, or one of the data set's own."""

    name: str = Field(
        description="A source: as the settings name it, without credentials. Own: its name in the folder."
    )
    size_bytes: int = Field(ge=0)
    sha256: str


class StepRecord(Config):
    """Counts of one step of the build; its rows are in `findings.jsonl`."""

    name: str
    num_before: int
    num_after: int
    num_changed: int = 0
    num_findings: int = 0

    @property
    def num_dropped(self) -> int:
        return self.num_before - self.num_after


class DatasetManifest(Config):
    """`manifest.json` of a data set folder; written last, so its presence marks the folder complete."""

    schema_version: Literal[2] = 2
    type: DatasetType = "prompt_completion"
    domain: str
    description: str
    source: str
    source_version: str
    sources: tuple[FileRecord, ...] = Field((), description="The files that were read; none for a packaged source.")
    licence: str | None
    chat: ChatConfig
    answer: AnswerConfig
    evaluation: EvaluationConfig
    defaults: DefaultsConfig = DefaultsConfig()
    rubric: str | None = Field(None, description="Of `quality.rubric`: what a judge grades answers by.")
    few_shot: tuple[FewShotExample, ...] = Field(
        description="The same examples of the train split in every few-shot prompt, so that prefixes are cached."
    )
    num_train: int
    num_validation: int
    num_test: int
    num_test_out_of_scope: int
    steps: tuple[StepRecord, ...] = Field((), description="In order; what each dropped or changed.")
    notes: tuple[str, ...] = Field((), description="What a person should know, a sentence each.")
    seed: int = 13
    format_version: int = Field(1, description="Version of the code that made the rows.")
    config_sha256: str = Field(
        description="Hash of everything that determines the rows; if equal, no rebuild is needed."
    )
    dataset_sha256: str = Field(
        description="SHA-256 over the rows of the three splits, without their origins and `fields`."
    )
    files: tuple[FileRecord, ...] = Field((), description="The splits and `findings.jsonl`.")
    digest: str = Field("", description="SHA-256 of this manifest without `digest` and `created_at`; names its folder.")
    created_at: str = Field(description="UTC, ISO 8601.")

    @property
    def version(self) -> str:
        """Name of the data set's folder."""
        return self.digest[:DIGEST_CHARS]

    @property
    def is_of_samples(self) -> bool:
        """Whether `lorikeet data from-samples` built it; its held-out rows are then those of another data set."""
        return self.source == samples_source(self.domain.removesuffix(FEEDBACK_SUFFIX))

    def content_digest(self) -> str:
        """What `digest` must be."""
        fields = self.model_dump(mode="json", exclude={"digest", "created_at"})
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

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


def samples_source(domain: str) -> str:
    """`source` of a data set of sampled answers."""
    return f"samples of {domain}"


def full_prompt(chat: ChatConfig, prompt: Sequence[Message]) -> tuple[Message, ...]:
    """A prompt as clients send it: with the domain's system prompt unless it has its own, and with `chat.user` applied.

    `chat.user` is applied to the last user turn.
    """
    turns = list(prompt)
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is not None:
        text = chat.user.replace("{input}", turns[last].content)
        turns[last] = turns[last].model_copy(update={"content": text})
    has_system = any(turn.role in ("system", "developer") for turn in turns)
    return tuple(turns) if has_system else (Message(role="system", content=chat.system), *turns)


def conversation(chat: ChatConfig, text: str, answer: str) -> tuple[Message, ...]:
    """The system, user and assistant turns of one question and its answer."""
    prompt = full_prompt(chat, (Message(role="user", content=text),))
    return (*prompt, Message(role="assistant", content=answer))


def few_shot_messages(manifest: DatasetManifest, text: str) -> tuple[Message, ...]:
    """A prompt for the base model: the fixed examples as earlier turns, then `text`; no answer."""
    shots = [turn for shot in manifest.few_shot for turn in conversation(manifest.chat, shot.input, shot.output)[1:]]
    system, user, _ = conversation(manifest.chat, text, "")
    return (system, *shots, user)


def version_folder(folder: Path) -> Path:
    """The folder of rows that a domain's folder points to; a version's own folder, and one without versions, is itself.

    Raises:
        DatasetError: The pointer is damaged.
    """
    pointer = folder / CURRENT_FILE
    if not pointer.is_file():
        return folder
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(rf"[0-9a-f]{{{DIGEST_CHARS}}}", name):
        raise DatasetError(
            f"Data set {folder.name!r}: {CURRENT_FILE!r} must hold {DIGEST_CHARS} hex digits; got {name[:40]!r}. "
            f"Build it again: `lorikeet data build config/domains/{folder.name}.yaml --force`."
        )
    return folder / name


def read_dataset(folder: Path) -> DatasetManifest:
    """The manifest of a built data set.

    Args:
        folder: A domain's folder, for its current version, or the folder of a version.

    Raises:
        DatasetError: The data set is missing, unfinished or unreadable.
    """
    path = version_folder(folder) / DATASET_MANIFEST_FILE
    if not path.is_file():
        raise DatasetError(
            f"Data set {folder.name!r} is missing or unfinished. Build it: "
            f"`lorikeet data build config/domains/{folder.name}.yaml`."
        )
    try:
        return DatasetManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DatasetError(
            f"Data set {folder.name!r}: {DATASET_MANIFEST_FILE} is not readable ({where}: {error.errors()[0]['msg']}). "
            "Build it again with `--force`."
        ) from error


def read_split(folder: Path, split: Split) -> list[DatasetRow]:
    """The rows of a prompt-completion split, in file order; `read_rows` in config/rows.py reads any type.

    Raises:
        DatasetError: The file is missing, a line is not a valid row, or the rows are of another type.
    """
    rows = []
    for number, line in split_lines(folder, split):
        try:
            rows.append(DatasetRow.model_validate_json(line))
        except ValidationError as error:
            wrong = next((fault["input"] for fault in error.errors() if fault["loc"] == ("type",)), None)
            if wrong is not None:
                raise DatasetError(
                    f"Data set {folder.name!r}: {split}.jsonl row {number} has type {wrong!r}; 'prompt_completion' is "
                    "wanted here. Give a data set of questions with answers."
                ) from error
            raise bad_row(folder, split, number, error) from error
    return rows


def held_out_questions(folder: Path, limit: int | None) -> tuple[DatasetManifest, list[DatasetRow]]:
    """A data set's held-out questions, the first `limit` ones.

    Raises:
        DatasetError: It is missing or damaged, or its rows are not questions with answers.
    """
    manifest = read_dataset(folder)
    if manifest.type != "prompt_completion":
        raise DatasetError(
            f"Data set {folder.name!r} must have questions with answers; its rows are of type {manifest.type!r}."
        )
    return manifest, read_split(folder, "test")[:limit]


def split_lines(folder: Path, split: Split) -> Iterator[tuple[int, str]]:
    """The numbered lines of a split's file.

    Raises:
        DatasetError: The file is missing.
    """
    path = version_folder(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise DatasetError(f"Data set {folder.name!r} has no {path.name}. Build it again with `--force`.")
    return numbered_lines(path.read_text(encoding="utf-8"))


def bad_row(folder: Path, split: Split, number: int, error: ValidationError) -> DatasetError:
    """The error of a line that is not a valid row."""
    return DatasetError(
        f"Data set {folder.name!r}: {split}.jsonl line {number}: {error.errors()[0]['msg']}. "
        "Build it again with `--force`."
    )


def verify_dataset(folder: Path) -> DatasetManifest:
    """`read_dataset`, then hash the files.

    Raises:
        DatasetError: As `read_dataset`, or files or manifest differ from what was built.
    """
    manifest, rows = read_dataset(folder), version_folder(folder)
    for record in manifest.files:
        path = rows / record.name
        found = sha256_of(path) if path.is_file() else "no file"
        if found != record.sha256:
            raise DatasetError(
                f"Data set {folder.name!r} changed after it was built: {record.name} has SHA-256 {found[:12]}…, its "
                f"manifest says {record.sha256[:12]}…. Build it again with `--force`."
            )
    if manifest.digest != manifest.content_digest():
        raise DatasetError(
            f"Data set {folder.name!r} changed after it was built: {DATASET_MANIFEST_FILE} differs from its digest "
            f"{manifest.version!r}. Build it again with `--force`."
        )
    return manifest


def hash_splits(folder: Path) -> str:
    """SHA-256 over the rows of the splits without origins and `fields`: equal for the same rows of another file."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split}\n".encode())
        with (folder / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                fields = json.loads(line)
                for name in ("origin", "fields"):
                    fields.pop(name, None)
                digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
