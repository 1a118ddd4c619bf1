"""`data` of a domain: where its examples come from, and how they are cleaned and split."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from config.model import Config

Layout = Literal[
    "auto",
    "chat",
    "alpaca",
    "dolly",
    "sharegpt",
    "openassistant",
    "input_output",
    "prompt_completion",
    "prompt_only",
    "question_answer",
    "text_label",
    "preference",
    "openai_preference",
    "openai_reinforcement",
    "unpaired_preference",
    "text",
]
_NOT_OF_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")
"""Python's encodings of host names and of its own sources."""
CutMode = Literal["middle", "left", "right", "drop", "error"]
Column = Annotated[str, StringConstraints(min_length=1)]


class CleaningConfig(Config):
    """What happens to rows before they are split. Each step counts and lists the rows that it changes or drops."""

    exact_duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="Rows equal to an earlier one; only Unicode normalisation (NFC) and outer white space are ignored.",
    )
    contamination: Literal["drop", "keep"] = Field(
        "drop",
        description="Training rows that are equal to, nearly equal to, or contain a held-out or benchmark row; "
        "`keep` only lists them.",
    )
    ngram_overlap: float | None = Field(
        0.7,
        gt=0,
        le=1,
        description="Share of a held-out question's 8-word sequences in a training row from which the row contains "
        "the question. null: not compared.",
    )
    near_duplicates: Literal["drop", "keep"] = Field(
        "keep", description="Rows of the training split that are nearly equal to an earlier one with the same answer."
    )
    near_duplicate_jaccard: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of 5-character shingles (MinHash) from which two rows are near copies; "
        "numbers, symbols and indentation must agree, too.",
    )
    near_duplicate_cosine: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Cosine similarity of MiniLM embeddings from which two rows are near duplicates (extra "
        "`embeddings`). null: embeddings are not computed.",
    )
    contradictions: Literal["drop", "majority", "keep", "error"] = Field(
        "drop",
        description="Rows with the same question and different answers: `majority` keeps the most frequent "
        "answer, if one is.",
    )
    control_tokens: Literal["error", "drop", "escape", "keep"] = Field(
        "error",
        description="Rows with control tokens of the base's chat template inside texts, as `<|im_end|>`: `escape` "
        "trains them as text, `keep` lets them act.",
    )
    pii: Literal["off", "report", "redact", "drop"] = Field(
        "report",
        description="E-mail addresses, phone, card and account numbers, IP addresses, keys: `redact` writes "
        "`[EMAIL]` and the like in their place, `drop` drops the row (extra `pii` for phones).",
    )


class DataGates(Config):
    """Conditions that a built data set must meet; otherwise the build fails and lists the rows. null: not checked."""

    max_contamination: int | None = Field(
        None, ge=0, description="Maximum number of training rows dropped as copies of held-out or benchmark rows."
    )
    max_contradictions: int | None = Field(None, ge=0)
    max_duplicates: float | None = Field(None, ge=0, le=1, description="Maximum share of rows dropped as duplicates.")
    max_pii: int | None = Field(None, ge=0, description="Maximum number of rows with personal data.")
    max_refusal_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Maximum share of answers that refuse, except out-of-scope rows with `answer.refusal`.",
    )
    max_label_errors: float | None = Field(None, ge=0, le=1, description="Maximum share of suspected label errors.")
    min_rows: int | None = Field(None, ge=1, description="Minimum number of training rows.")
    min_rows_per_class: int | None = Field(None, ge=1, description="Minimum training rows of each answer.")


class DataConfig(Config):
    """Source, cleaning and split of a domain's examples."""

    source: Literal["files", "icd10cm", "iso18245", "licensedcode"] = "files"
    path: str | tuple[str, ...] | None = Field(
        None, description="File, folder, glob or fsspec URL, or several of them (with `source: files`)."
    )
    layout: Layout = Field(
        "auto",
        description="`auto`: detected from the first rows of each file, and reported (docs/data.md).",
    )
    columns: dict[Column, Column] = Field(
        {}, description="The layout's columns by the file's names, as {input: query, output: reply}."
    )
    encoding: str = Field("utf-8", description="Encoding of text files, as cp1252; a byte order mark is recognised.")
    held_out: tuple[str, ...] = Field(
        (),
        description="Files whose rows are held out: some for early stopping, the others for testing. All rows of "
        "`path` may then be trained on. Read as `path` is.",
    )
    benchmarks: tuple[str, ...] = Field(
        (), description="Files whose questions must not be trained on, as test rows; read as `path` is."
    )
    replay: tuple[str, ...] = Field(
        (),
        description="Files of general questions with answers that `recipe.replay_share` mixes into training; read as "
        "`path` is.",
    )
    licence: str | None = Field(None, description="Licence of the data; default: the packaged source's own.")
    num_train: int = Field(2000, ge=1, description="Maximum number of training examples.")
    num_validation: int | None = Field(
        None, ge=1, description="Number of examples for early stopping; default: 64, at most a tenth of the rows."
    )
    num_test: int | None = Field(
        None, ge=1, description="Number of held-out examples; default: 240, at most a fifth of the rows."
    )
    group_by: Column | None = Field(None, description="Column whose equal values stay in one split, as a patient.")
    time_by: Column | None = Field(
        None, description="Column of numbers or ISO 8601 dates to order by: the newest rows are held out."
    )
    stratify_by: Column | None = Field(
        None, description="Column with the same shares in each split; default: the answer, if it repeats."
    )
    out_of_scope_share: float = Field(0.06, ge=0, lt=1, description="Share of inputs that must be refused.")
    max_input_chars: int | None = Field(
        None, ge=1, description="Maximum characters of a question; longer ones are cut."
    )
    cut_long_inputs: CutMode = Field(
        "middle",
        description="What happens to questions over `max_input_chars` and rows over `recipe.max_length` tokens: where "
        "they are cut, or `drop` or `error`; answers are never cut.",
    )
    cleaning: CleaningConfig = CleaningConfig()
    gates: DataGates = DataGates()
    seed: int = 13

    @field_validator("source", mode="before")
    @classmethod
    def _jsonl_files_are_files(cls, source: Any) -> Any:
        return "files" if source == "jsonl" else source

    @field_validator("encoding")
    @classmethod
    def _the_encoding_is_known(cls, encoding: str) -> str:
        try:
            "a".encode(encoding)
            if codecs.lookup(encoding).name in _NOT_OF_FILES:
                raise LookupError
        except (LookupError, ValueError):
            raise ValueError("must be a text encoding that Python knows, as cp1252 or utf-16-le") from None
        return encoding

    @model_validator(mode="after")
    def _files_need_a_path(self) -> "DataConfig":
        if (self.source == "files") != bool(self.path):
            raise ValueError(f"`path` requires `source: files`, and the reverse; got {self.source!r}, {self.path!r}")
        return self

    @model_validator(mode="after")
    def _held_out_files_stand_beside_files(self) -> "DataConfig":
        if self.held_out and self.source != "files":
            raise ValueError(f"`held_out` requires `source: files`; got {self.source!r}")
        return self

    @model_validator(mode="after")
    def _time_decides_alone(self) -> "DataConfig":
        if self.time_by and self.stratify_by:
            raise ValueError("`stratify_by` has no effect with `time_by`: the newest rows are held out. Remove one")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path or ()
