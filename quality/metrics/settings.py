"""`evaluation.metrics` in a domain's YAML: a name, or a mapping with the metric's own settings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

PlainName = Literal[
    "exact_match",
    "json_fields",
    "accuracy",
    "macro_f1",
    "span_f1",
    "token_f1",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu",
    "chrf",
    "similarity",
    "valid_format",
    "refusal",
    "tool_calls",
    "length",
]


class MetricSettings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlainMetric(MetricSettings):
    """A metric without settings."""

    name: PlainName


class RegexMetric(MetricSettings):
    """Share of answers that the whole pattern matches."""

    name: Literal["regex"]
    pattern: str = Field(min_length=1, max_length=1000, description="RE2 syntax: no lookaround, no backreference.")


class NumericMetric(MetricSettings):
    """Share of answers whose last number is the expected one."""

    name: Literal["numeric"] = "numeric"
    tolerance: float = Field(0.0, ge=0, description="Allowed absolute difference.")
    relative: float = Field(1e-6, ge=0, description="Allowed difference as a share of the larger number.")


class JudgeSettings(MetricSettings):
    """A model that judges answers, at any OpenAI-compatible endpoint."""

    rubric: str | None = Field(
        None, min_length=1, max_length=16_384, description="Default: the domain's `quality.rubric`."
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenAI-compatible base URL, as http://127.0.0.1:8001/v1. null: the server under evaluation.",
    )
    model: str | None = Field(
        None, min_length=1, description="Name of the judge there. null: the base of the server under evaluation."
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="Environment variable that holds the API key of `url`."
    )

    @model_validator(mode="after")
    def _a_judge_elsewhere_has_a_name(self) -> "JudgeSettings":
        if self.url is not None and self.model is None:
            raise ValueError(f"`model` must name the judge at `url` {self.url!r}")
        if self.url is None and self.api_key_env is not None:
            raise ValueError(f"`api_key_env` requires `url`; got {self.api_key_env!r} and no url")
        return self


class JudgeMetric(JudgeSettings):
    """Mean grade of a judge, as 0 to 1."""

    name: Literal["judge"]
    scale: str = Field("1-5", pattern=r"^\d{1,2}-\d{1,2}$", description="Lowest and highest grade, as 1-5 or 0-1.")

    @field_validator("scale")
    @classmethod
    def _the_scale_rises(cls, scale: str) -> str:
        lowest, highest = map(int, scale.split("-"))
        if lowest >= highest:
            raise ValueError(f"`scale` must be a lower and a higher whole number, as 1-5; got {scale!r}")
        return scale


class PairwiseMetric(JudgeSettings):
    """Share of answers that a judge prefers to the first model's, shown in both orders; a tie counts half."""

    name: Literal["judge_pairwise"]


class PythonMetric(MetricSettings):
    """A function of one's own: `function(answer, expected, question) -> float`."""

    name: Literal["python"] = "python"
    function: str = Field(description="`path.py:function`, relative to the domain's YAML. Evaluation runs the file.")


def _from_text(value: Any) -> Any:
    """`numeric`, or `python: score.py:polite` as text or as a mapping of one key."""
    if isinstance(value, dict) and set(value) == {"python"}:
        return {"name": "python", "function": value["python"]}
    if isinstance(value, str):
        name, _, rest = value.partition(":")
        return {"name": "python", "function": rest.strip()} if name == "python" and rest else {"name": value}
    return value


MetricConfig = Annotated[
    Annotated[
        PlainMetric | RegexMetric | NumericMetric | JudgeMetric | PairwiseMetric | PythonMetric,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_text),
]


DEFAULT_METRICS: tuple[MetricConfig, ...] = (PlainMetric(name="exact_match"), PlainMetric(name="valid_format"))


def local_metrics(metrics: tuple[MetricConfig, ...]) -> tuple[MetricConfig, ...]:
    """The metrics that need no endpoint, the default ones if there are none."""
    return tuple(metric for metric in metrics if not isinstance(metric, JudgeSettings)) or DEFAULT_METRICS
