"""`config/domains/<domain>.yaml`: everything that makes one adapter. Frozen; an unknown key is an error."""

import re
from typing import Annotated, Any, Literal

import re2
from pydantic import Field, StringConstraints, field_validator, model_validator

from config.data import Column, DataConfig
from config.forgetting import ForgettingConfig, OverfittingConfig
from config.model import Config
from config.sweep import SweepConfig
from config.training import TrainingConfig
from quality.metrics.settings import MetricConfig, local_metrics
from quality.policy import CanaryPolicy
from quality.robustness.settings import RobustnessSettings

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


class EvaluationConfig(Config):
    """Generation and scoring of answers; also the default length and stop strings for clients."""

    # Not part of a data set, which stays the same.
    metric: MetricConfig | None = Field(
        None,
        exclude=True,
        description="Scores held-out questions on servers, 0 to 1, and so judges canaries. Default: the first of "
        "`metrics`, or exact_match.",
    )
    metrics: tuple[MetricConfig, ...] = Field(
        (),
        max_length=20,
        description="Metrics of training and `lorikeet eval run` (docs/evaluation.md); the first decides.",
    )
    robustness: RobustnessSettings = Field(
        None, description="Perturbed copies of held-out questions, asked by training and `lorikeet eval run`."
    )
    slice_by: tuple[Column, ...] = Field(
        (), max_length=5, description="Columns of the data whose values split each figure, as a region or a customer."
    )
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[StopString, ...] = Field(
        (), max_length=4, description="Stop strings; they are included in the answer. vLLM accepts at most 4."
    )
    num_few_shot: int = Field(5, ge=0, description="Examples in the prompt of the few-shot baseline.")
    # Not part of a data set: another measurement asks for no new version of the rows.
    forgetting: ForgettingConfig = Field(
        ForgettingConfig(), exclude=True, description="What the adapter may have lost (docs/evaluation.md)."
    )
    overfitting: OverfittingConfig = Field(
        OverfittingConfig(), exclude=True, description="Training rows beside held-out ones (docs/evaluation.md)."
    )

    @field_validator("slice_by", mode="before")
    @classmethod
    def _one_column_is_a_list_of_one(cls, slice_by: Any) -> Any:
        return (slice_by,) if isinstance(slice_by, str) else slice_by

    @property
    def held_out_metric(self) -> MetricConfig:
        """What servers score held-out questions by."""
        return self.metric or self.measured[0]

    @property
    def measured(self) -> tuple[MetricConfig, ...]:
        """What a version's figures are of: no judge, whom training cannot ask."""
        metrics = local_metrics(self.metrics)
        return metrics if self.metric is None or self.metric in metrics else (*metrics, self.metric)


class DefaultsConfig(Config):
    """Further defaults for evaluation and clients: see `DatasetManifest.request_fields`."""

    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy decoding, which suits exact match."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    response_format: Literal["json_schema"] | None = Field(
        None, description="json_schema: constrain answers to `answer.json_schema`; this costs time per token."
    )


class FigureGate(Config):
    """Condition on one figure of a version; what is set is compared with the value, not with its interval."""

    min: float | None = Field(None, description="Lowest allowed value of the version.")
    max: float | None = Field(None, description="Highest allowed value of the version.")
    min_difference: float | None = Field(None, description="Lowest allowed difference, version minus base.")
    max_difference: float | None = Field(None, description="Highest allowed difference, version minus base.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> "FigureGate":
        pairs = ((self.min, self.max), (self.min_difference, self.max_difference))
        if all(bound is None for pair in pairs for bound in pair):
            raise ValueError("needs one of `min`, `max`, `min_difference` and `max_difference`")
        for low, high in pairs:
            if low is not None and high is not None and low > high:
                raise ValueError(f"no figure is at least {low:g} and at most {high:g}")
        return self


class GatesConfig(Config):
    """Conditions for promoting a new version to `stable` automatically; each that is set replaces its default."""

    min_gain: float | None = Field(
        None,
        description="Required gain on the held-out split: the version's score minus the base's, by the first of "
        "`evaluation.metrics` (default exact match) or the objective's own score. Default: the interval of the gain, "
        "paired by question, lies above zero.",
    )
    min_valid_format: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Required share of valid answers. Default: not below that of the stable version, of the base if "
        "there is none: at most 0.05 lower, and not lower beyond chance.",
    )
    max_forgetting: float | None = Field(
        None,
        ge=0,
        description="Allowed loss, in the unit of each figure: nats per token of general text, share of correct "
        "answers of a set of tasks or another domain. Default: 2 nats, 0.4 of a share, beyond chance.",
    )
    figures: dict[str, FigureGate] = Field(
        {}, description="Conditions by a figure's key: `macro_f1`, `exact_match[scope: out]`, `robustness[typos]`."
    )


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


class DomainConfig(TrainingConfig):
    """`config/domains/<domain>.yaml`: everything that makes one adapter."""

    name: AdapterName
    description: str
    base: str = Field("smollm2-135m-nf4", description="Prepared base model: a folder in `var/bases`.")
    data: DataConfig
    documents: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        (),
        description="Text files, and folders of .txt, .md and .rst files, whose passages `lorikeet eval decide` puts "
        "into prompts.",
    )
    chat: ChatConfig
    answer: AnswerConfig = AnswerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    gates: GatesConfig = GatesConfig()
    quality: QualityConfig = QualityConfig()
    sweep: SweepConfig = Field(SweepConfig(), description="What `lorikeet sweep` varies.")

    @model_validator(mode="after")
    def _replay_has_a_share(self) -> "DomainConfig":
        if self.data.replay and not self.recipe.replay_share:
            raise ValueError("`data.replay` has no effect without `recipe.replay_share`: set it, as 0.1")
        return self

    @model_validator(mode="after")
    def _a_format_has_its_schema(self) -> "DomainConfig":
        if self.defaults.response_format and self.answer.json_schema is None:
            raise ValueError("`defaults.response_format: json_schema` requires a schema in `answer.json_schema`")
        return self
