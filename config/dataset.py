"""A built data set: its rows, its manifest, and how to read them. Shared by training and by live evaluation."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from config.domain import AnswerConfig, ChatConfig, DefaultsConfig, EvaluationConfig
from config.errors import DatasetError
from config.json_lines import numbered_lines
from config.model import Config

DATASET_MANIFEST_FILE = "manifest.json"
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


DatasetType = Literal["language_modeling", "prompt_completion", "prompt_only", "preference", "unpaired_preference"]
"""The types of TRL's data sets, by its names (TRL documentation, "Dataset formats and types")."""


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
        return {"role": self.role, "content": self.content} | fields

    def for_request(self) -> dict[str, Any]:
        """The turn as `/v1/chat/completions` takes it: arguments as JSON text."""
        turn = self.for_template()
        for call in turn.get("tool_calls", ()):
            call["type"] = "function"
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

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = Field((), description="Tool definitions, as in `/v1/chat/completions`.")
    input: str = Field(description="Text of the question: the last user turn, before `chat.user` is applied.")
    output: str = Field(description="Text of the answer: the last turn.")
    in_scope: bool = True
    is_synthetic: bool = Field(False, description="Written by a model; such rows are only in the training split.")
    origin: Origin | None = Field(None, description="None: a packaged source.")

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
    for number, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            rows.append(DatasetRow.model_validate_json(line))
        except ValidationError as error:
            raise DatasetError(
                f"Data set {folder.name!r}: {path.name} line {number}: {error.errors()[0]['msg']}. "
                "Build it again with `--force`."
            ) from error
    return rows


def hash_splits(folder: Path) -> str:
    """SHA-256 over the names and bytes of the three split files."""
    digest = hashlib.sha256()
    for split in SPLITS:
        content = (folder / f"{split}.jsonl").read_bytes()
        digest.update(f"{split} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def rows_to_jsonl(rows: Sequence[DatasetRow]) -> str:
    """One JSON object per line with sorted keys, so that equal rows give equal bytes."""
    objects = (row.model_dump(mode="json", exclude_defaults=True) for row in rows)
    return "".join(json.dumps(fields, ensure_ascii=False, sort_keys=True) + "\n" for fields in objects)
