"""`config/domains/<domain>.yaml`: everything that makes one adapter. Frozen; an unknown key is an error."""

import re
from datetime import date
from typing import Annotated, Any, Literal

import re2
from pydantic import Field, StringConstraints, field_validator, model_validator

from config.data import DataConfig
from config.model import Config
from quality.policy import CanaryPolicy

AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]


def check_pattern(what: str, pattern: str) -> None:
    """Check that a regular expression can be matched in linear time, as servers do.

    Raises:
        ValueError: It cannot, or is none.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        re.compile(pattern)
        re2.compile(pattern.replace(r"\Z", r"\z"), options)
    except (re.error, RecursionError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{what} must be a regular expression: {error}") from None
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise ValueError(
            f"{what} cannot be matched in linear time ({reason}): write {pattern[:80]!r} without lookaround "
            r"((?=…), (?!…)) and backreferences (\1)."
        ) from None


class ChatConfig(Config):
    """How an example becomes a conversation."""

    system: str = Field(
        max_length=16_384,
        description="System prompt for training, evaluation and serving; clients need not send it.",
    )
    user: str = Field(
        "{input}",
        description="User turn; `{input}` is replaced by the input. The server does not apply it: clients send the "
        "whole turn.",
    )

    @model_validator(mode="after")
    def _user_has_the_input(self) -> "ChatConfig":
        if "{input}" not in self.user:
            raise ValueError(f"`user` must contain {{input}}; got {self.user!r}")
        return self


class AnswerConfig(Config):
    """Expected answer format of the domain."""

    json_schema: dict[str, Any] | None = Field(None, description="JSON schema of a valid answer.")
    refusal: str | None = Field(None, description="Expected answer to an out-of-scope input.")

    @field_validator("json_schema")
    @classmethod
    def _the_patterns_compile(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        nodes: list[Any] = [schema]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                by_pattern = node.get("patternProperties")
                for pattern in (node.get("pattern"), *(by_pattern if isinstance(by_pattern, dict) else ())):
                    if isinstance(pattern, str):
                        check_pattern("A pattern of json_schema", pattern)
            nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return schema


class RecipeConfig(Config):
    """LoRA and optimiser settings, in PEFT's and TRL's words."""

    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    learning_rate: float = Field(1e-3, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(0.05, ge=0, description="Warmup steps, or a share of all steps if below 1.")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_steps: int = Field(80, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_length: int = Field(256, ge=16, description="Maximum tokens per example; see `data.cut_long_inputs`.")
    eval_steps: int = Field(20, ge=1)
    early_stopping_patience: int = Field(
        2, ge=1, description="Evaluations without a better held-out loss before training stops."
    )
    seed: int = 13
    template_date: date | Literal["today", "varied"] = Field(
        "today",
        description="For bases whose chat template writes the date: `today` is the day on which the run begins; a date "
        "(2026-11-28) is fixed; `varied` gives each example another date within three years from today.",
    )


class EvaluationConfig(Config):
    """Generation and scoring of answers; also the default length and stop strings for clients."""

    metric: Literal["exact_match"] = "exact_match"
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[StopString, ...] = Field(
        (), max_length=4, description="Stop strings; they are included in the answer. vLLM accepts at most 4."
    )
    num_few_shot: int = Field(5, ge=0, description="Examples in the prompt of the few-shot baseline.")


class DefaultsConfig(Config):
    """Further defaults for evaluation and clients: see `DatasetManifest.request_fields`."""

    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy decoding, which suits exact match."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    response_format: Literal["json_schema"] | None = Field(
        None, description="json_schema: constrain answers to `answer.json_schema`; this costs time per token."
    )


class GatesConfig(Config):
    """Conditions for promoting a new version to `stable` automatically."""

    min_gain: float = Field(
        0.0, description="Required gain: the adapter's score minus the base's on the held-out split."
    )
    min_valid_format: float = Field(0.0, ge=0, le=1)


class QualityConfig(CanaryPolicy, Config):
    """Rules for judging canaries and answers of the domain; published with each version."""

    rubric: str | None = Field(None, min_length=1, description="Grading instructions for the judge.")
    answer_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Regular expression of a valid answer (RE2 syntax: no lookaround, no backreference).",
    )
    refusal: str | None = Field(None, description="Default: derived from `answer`.")
    publish_held_out: bool = Field(
        True, description="Publish the held-out examples with the version, so that a server can replay them."
    )

    @field_validator("answer_pattern")
    @classmethod
    def _the_pattern_compiles(cls, pattern: str | None) -> str | None:
        check_pattern("answer_pattern", pattern or "")
        return pattern


class DomainConfig(Config):
    """`config/domains/<domain>.yaml`: everything that makes one adapter."""

    name: AdapterName
    description: str
    base: str = Field("smollm2-135m-nf4", description="Prepared base model: a folder in `var/bases`.")
    data: DataConfig
    chat: ChatConfig
    answer: AnswerConfig = AnswerConfig()
    recipe: RecipeConfig = RecipeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    gates: GatesConfig = GatesConfig()
    quality: QualityConfig = QualityConfig()

    @model_validator(mode="after")
    def _a_format_has_its_schema(self) -> "DomainConfig":
        if self.defaults.response_format and self.answer.json_schema is None:
            raise ValueError("`defaults.response_format: json_schema` requires a schema in `answer.json_schema`")
        return self
