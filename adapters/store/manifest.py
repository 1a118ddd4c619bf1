"""Manifests of prepared bases and adapter versions: frozen models, stored as JSON."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, NaiveDatetime, StringConstraints, field_validator

from adapters.store.evaluation_records import (
    Evaluation,
    FigureRecord,
    Forgetting,
    GateOutcome,
    ObjectiveScore,
    QualityBaseline,
)
from adapters.store.record import Record
from quality.policy import CanaryPolicy

MANIFEST_FILE = "manifest.json"

Quantization = Literal["nf4", "int8", "none", "gptq", "awq", "compressed-tensors"]
Storage = Literal["dequantized", "bitsandbytes", "plain", "prequantized"]
TemplateChange = Literal[
    "content_parts", "content_text", "system_in_user", "no_thinking", "answer_header", "end_of_turn"
]
"""What `base prepare` changes: see docs/data.md."""
StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]


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


class VersionRef(Record):
    """A published version, by name and content."""

    lora_name: str
    digest: str


class JobRef(Record):
    """The fine-tuning job that made a version."""

    id: str
    step: int | None = Field(None, description="Of a checkpoint: its step. None: the job's result.")


class BaseManifest(Record):
    """`manifest.json` of a prepared base folder; written last, so its presence marks the folder complete."""

    schema_version: Literal[1] = 1
    name: str
    source: str = Field(description="Its source: package, hub id or folder name.")
    licence: str | None = None
    quantization: Quantization
    storage: Storage = Field(
        description="Storage format of the weights: quantized once and dequantized to bf16, as bitsandbytes "
        "tensors, never quantized, or as it was quantized before, with a bf16 copy for training."
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
    lineage: "BaseLineage | None" = Field(None, description="None: prepared from a source, as it is.")

    @property
    def ref(self) -> BaseRef:
        return BaseRef(
            name=self.name,
            digest=self.digest,
            quantization=self.quantization,
            template_changes=self.template_changes,
        )


class LoraSpec(Record):
    """What kind of adapter it is, and how large. Of a soft prompt only `num_virtual_tokens` is above zero."""

    peft_type: Literal["LORA", "PROMPT_TUNING", "P_TUNING"] = "LORA"
    lora_r: int = 0
    lora_alpha: float = 0.0
    use_rslora: bool = False
    use_dora: bool = Field(False, description="False in older manifests.")
    target_modules: tuple[str, ...] = Field((), description="Short names (`q_proj`), sorted.")
    num_modules: int = Field(0, description="Layers of the base that the adapter changes.")
    task: Literal["CAUSAL_LM", "SEQ_CLS"] = Field(
        "CAUSAL_LM", description="SEQ_CLS: a reward model, which gives scores and no answers."
    )
    num_virtual_tokens: int = Field(0, description="Of prompt tuning and P-tuning; 0: a LoRA.")

    @property
    def kind(self) -> str:
        if self.num_virtual_tokens:
            return "Soft prompt"
        return "DoRA" if self.use_dora else "LoRA"

    @property
    def described(self) -> str:
        """In a few words, as `r 8, alpha 16, 210 modules: k_proj, q_proj`."""
        if self.num_virtual_tokens:
            method = "P-tuning" if self.peft_type == "P_TUNING" else "prompt tuning"
            return f"{method}, {self.num_virtual_tokens} virtual tokens"
        modules = f"{self.num_modules} modules: {', '.join(self.target_modules)}"
        return f"r {self.lora_r}, alpha {self.lora_alpha:g}, {modules}"


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


class ConversionRecord(Record):
    """A trained adapter of another method, converted to the LoRA that is served."""

    method: str
    rank: int = Field(description="Highest rank of a layer.")
    error_nats: float = Field(
        description="Mean |log-probability difference| per held-out answer token, trained to converted."
    )


class LossCurves(Record):
    """(step, loss in nats per learnt token) of a run, at most 200 points each."""

    train: tuple[tuple[int, float], ...] = Field((), description="Mean over the steps since the point before.")
    held_out: tuple[tuple[int, float], ...] = Field((), description="On the validation split.")
    kept_step: int | None = Field(None, description="The step whose weights were kept.")


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
    conversion: ConversionRecord | None = Field(None, description="None: the adapter is as it was trained.")
    losses: LossCurves | None = Field(None, description="None in older versions.")


class QualityRules(CanaryPolicy, Record):
    """Rules for judging this version's canaries and answers."""

    rubric: str | None = Field(None, description="Grading rubric of the judge.")
    answer_pattern: str | None = Field(None, max_length=1000, description="Regular expression of a valid answer.")
    refusal: str | None = Field(None, description="Expected answer to an out-of-scope input.")
    held_out_metric: str = Field("exact_match", description="Metric that scores the held-out questions on a server.")

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


class SparsityRecord(Record):
    """Weights set to zero, and perplexity of general text before and after."""

    pattern: str = Field(description="Share of the weights, or N:M.")
    share_zero: float = Field(description="Of the linear layers' weights.")
    size_bytes: int = Field(description="Of the weight files, which store the zeros too.")
    compressed_bytes: int = Field(description="Of non-zero weights, with one bit a weight for their positions.")
    base_perplexity: float
    perplexity: float


class BaseLineage(Record):
    """How a base was made from another one."""

    parent: BaseRef
    made_by: str = Field(description="Method of training (`full`, `oft`) or of sparsity (`wanda`), or `merge`.")
    merged: VersionRef | None = Field(None, description="The version whose adapter was merged into the parent.")
    dataset: DatasetRef | None = None
    training: TrainingRecord | None = None
    evaluation: Evaluation | None = Field(None, description="`base` is the parent, `adapter` this base.")
    scores: dict[str, ObjectiveScore] = Field({}, description="Of the objective, by name.")
    forgetting: Forgetting | None = None
    figures: tuple[FigureRecord, ...] = ()
    sparsity: SparsityRecord | None = None
    evaluations: dict[str, Evaluation] = Field({}, description="Of domains, before and after, by name.")


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
    started_from: VersionRef | None = Field(None, description="Version whose adapter training started from.")
    job: JobRef | None = Field(None, description="Fine-tuning job that made it; None: another command.")
    combination: Combination | None = Field(None, description="None: trained or imported.")
    evaluation: Evaluation | None = None
    scores: dict[str, ObjectiveScore] = Field(
        {}, description="Of the objective, by name: `reward_accuracy`, `perplexity`… Empty: `sft`, or an older version."
    )
    forgetting: Forgetting | None = None
    figures: tuple[FigureRecord, ...] = Field(
        (), description="Of `evaluation.metrics`, by slice too, robustness, forgetting and overfitting."
    )
    gates: tuple[GateOutcome, ...] = Field(
        (),
        description="Conditions for promotion, as judged. Empty: not judged (imported, combined), or an older version.",
    )
    quality_baseline: QualityBaseline | None = None
    quality: QualityRules | None = Field(None, description="None in older versions: the defaults apply.")
    defaults: RequestDefaults | None = Field(None, description="Request defaults; None: no field is filled in.")

    @property
    def held_out_figure(self) -> FigureRecord | None:
        """The figure by which servers score held-out questions: what they should find again."""
        metric = self.quality.held_out_metric if self.quality else "exact_match"
        found = next((figure for figure in self.figures if figure.key == metric), None)
        if found is None and self.evaluation is not None and self.evaluation.metric == metric:
            evaluation = self.evaluation
            return FigureRecord(kind="metric", metric=metric, adapter=evaluation.adapter, base=evaluation.base)
        return found

    @property
    def unmet_gates(self) -> tuple[str, ...]:
        """What the gates found that this version does not meet."""
        return tuple(gate.finding for gate in self.gates if not gate.is_met)


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
