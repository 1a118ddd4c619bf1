"""Manifests of prepared bases and adapter versions: frozen models, stored as JSON."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, StringConstraints, field_validator

from adapters.scores import Score
from quality.policy import CanaryPolicy

MANIFEST_FILE = "manifest.json"

Quantization = Literal["nf4", "int8", "none"]
Storage = Literal["dequantized", "bitsandbytes", "plain"]
TemplateChange = Literal[
    "content_parts", "content_text", "system_in_user", "no_thinking", "answer_header", "end_of_turn"
]
"""What `base prepare` changes: see docs/data.md."""
StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Record):
    path: str = Field(description="Relative to the version folder, with forward slashes.")
    size_bytes: int
    sha256: str


class BaseRef(Record):
    """The base that an adapter was trained on; only `digest` is compared."""

    name: str
    digest: str
    quantization: Quantization
    template_changes: tuple[TemplateChange, ...] = ()


class BaseManifest(Record):
    """`manifest.json` of a prepared base folder; written last, so its presence marks the folder complete."""

    schema_version: Literal[1] = 1
    name: str
    source: str = Field(description="Its source: package, hub id or folder name.")
    licence: str | None = None
    quantization: Quantization
    storage: Storage = Field(
        description="Storage format of the weights: quantized once and dequantized to bf16, as bitsandbytes "
        "tensors, or never quantized."
    )
    architecture: str
    num_parameters: int
    max_position_embeddings: int
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    template_writes_time: bool | None = Field(
        None, description="Whether the chat template writes the date or time into prompts; None in older manifests."
    )
    template_changes: tuple[TemplateChange, ...] = Field(
        (), description="What `base prepare` rewrote in the model's own chat template, so that it can be trained."
    )
    digest: str = Field(description="SHA-256 over weights, tokenizer, chat template and quantization.")
    files: tuple[FileEntry, ...]
    libraries: dict[str, str]
    created_at: str = Field(description="UTC, ISO 8601.")

    @property
    def ref(self) -> BaseRef:
        return BaseRef(
            name=self.name,
            digest=self.digest,
            quantization=self.quantization,
            template_changes=self.template_changes,
        )


class LoraSpec(Record):
    peft_type: Literal["LORA"] = "LORA"
    lora_r: int
    lora_alpha: float
    use_rslora: bool = False
    target_modules: tuple[str, ...] = Field(description="Short names (`q_proj`), sorted.")
    num_modules: int = Field(description="Layers of the base that the adapter changes.")


class SourceFile(Record):
    """A file that the rows of a data set came from."""

    name: str
    size_bytes: int = Field(ge=0)
    sha256: str


class DatasetRef(Record):
    dataset_sha256: str
    source: str
    licence: str | None
    num_train: int
    num_validation: int
    num_test: int
    digest: str | None = Field(None, description="Names the data set's folder by its first 12 digits. None: older.")
    files: tuple[SourceFile, ...] = Field((), description="None for a packaged source, and in older versions.")


Precision = Literal["bfloat16", "float32", "mixed"]


class ComputeRecord(Record):
    """Precision and threads of a training run, and the measurement that chose them."""

    precision: Precision
    num_threads: int = Field(ge=1)
    layer_ms: dict[str, float] = Field(
        default_factory=dict,
        description="Milliseconds of one decoder layer by candidate; empty if nothing was measured.",
    )


class TrainingRecord(Record):
    arguments: dict[str, Any]
    metrics: dict[str, float]
    duration_s: float
    device: str
    libraries: dict[str, str]
    compute: ComputeRecord | None = Field(None, description="None in older versions.")
    template_time: NaiveDatetime | None = Field(
        None,
        description="The time passed to the chat template in evaluation and, unless varied, in training. None: it asks "
        "for none, or an older version.",
    )


class Evaluation(Record):
    """Base (zero-shot) and adapter on the same held-out split, by the training stack."""

    metric: str
    base: Score
    adapter: Score
    base_valid_format: Score
    valid_format: Score


class Forgetting(Record):
    """Mean negative log-likelihood of general text, nats per token, without and with the adapter."""

    text: str = Field(description="Which text was measured.")
    num_tokens: int
    base_nll: float
    adapter_nll: float


class QualityBaseline(Record):
    """Statistics of this version's answers at publish, against which drift is measured."""

    n: int
    mean_answer_tokens: float
    mean_token_logprob: float
    mean_prompt_tokens: float


class QualityRules(CanaryPolicy, Record):
    """Rules for judging this version's canaries and answers."""

    rubric: str | None = Field(None, description="Grading rubric of the judge.")
    answer_pattern: str | None = Field(None, max_length=1000, description="Regular expression of a valid answer.")
    refusal: str | None = Field(None, description="Expected answer to an out-of-scope input.")

    @field_validator("answer_pattern")
    @classmethod
    def _the_pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"answer_pattern must be a regular expression: {error}") from None
        return pattern


class RequestDefaults(Record):
    """Defaults for fields that a request leaves out; the version was evaluated with them."""

    system: str | None = Field(None, max_length=16_384, description="System prompt.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    stop: tuple[StopString, ...] = Field(
        (), max_length=4, description="Strings that end an answer; they are kept in its text."
    )
    response_format: dict[str, Any] | None = Field(None, description="As in `/v1/chat/completions`; JSON schemas only.")

    @field_validator("response_format")
    @classmethod
    def _the_format_is_a_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        described = value.get("json_schema")
        named = (described.get("name"), described.get("schema")) if isinstance(described, dict) else (None, None)
        if value.get("type") != "json_schema" or not (isinstance(named[0], str) and isinstance(named[1], dict)):
            raise ValueError('must be {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}')
        return value

    @property
    def given(self) -> dict[str, Any]:
        """The set fields as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


CombineMethod = Literal["linear", "ties", "dare_linear", "dare_ties", "svd", "cat"]
"""How PEFT combines adapters, by its names (`combination_type` of `add_weighted_adapter`)."""


class CombinedSource(Record):
    """A version that a combination was made from."""

    lora_name: str
    digest: str
    weight: float


class Combination(Record):
    """Lineage and scores of a version that `adapters merge` made."""

    method: CombineMethod
    density: float | None = Field(None, description="Share of the numbers that `ties` and `dare` kept.")
    sources: tuple[CombinedSource, ...]
    evaluations: dict[str, Evaluation] = Field(description="On the held-out split of each source's domain, if known.")


class ManifestDraft(Record):
    """A manifest without version, digest and files, which the store adds at publish."""

    name: str
    base: BaseRef
    lora: LoraSpec
    origin: Literal["trained", "imported", "combined"] = "trained"
    description: str = ""
    answer_schema: dict[str, Any] | None = Field(None, description="JSON schema of a valid answer.")
    dataset: DatasetRef | None = None
    training: TrainingRecord | None = None
    combination: Combination | None = Field(None, description="None: trained or imported.")
    evaluation: Evaluation | None = None
    forgetting: Forgetting | None = None
    quality_baseline: QualityBaseline | None = None
    quality: QualityRules | None = Field(None, description="None in older versions: the defaults apply.")
    defaults: RequestDefaults | None = Field(None, description="Request defaults; None: no field is filled in.")


class Manifest(ManifestDraft):
    """`manifest.json` of a version folder; written last."""

    schema_version: Literal[1] = 1
    version: int = Field(ge=1)
    digest: str = Field(description="SHA-256 over the sorted `path sha256` lines of `files`.")
    files: tuple[FileEntry, ...]
    created_at: str = Field(description="UTC, ISO 8601.")

    @property
    def lora_name(self) -> str:
        return f"{self.name}@{self.version}"
