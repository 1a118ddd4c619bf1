"""`held_out.json` of a version: held-out questions with answers, general text, and a drift baseline.

Contains everything that a server needs to monitor a version; the domain's own files are not needed.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from quality.drift import Exchange
from quality.errors import MetricError
from quality.metrics.served import check_served
from quality.metrics.settings import MetricConfig, PlainMetric

HELD_OUT_FILE = "held_out.json"
_OLD_FILE = "probes.json"

StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]
TokenIds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)]


class InvalidHeldOutError(ValueError):
    """An invalid `held_out.json`."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOutMessage(_Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class HeldOutQuestion(_Record):
    """A held-out question, as a client would ask it, and the right answer."""

    messages: tuple[HeldOutMessage, ...] = Field(min_length=1)
    expected: str
    in_scope: bool = Field(True, description="False: the right answer is the domain's refusal.")


class GeneralText(_Record):
    """Text of no domain; nats per token after the first, by the training stack."""

    token_ids: TokenIds
    base_nll: FiniteFloat
    adapter_nll: FiniteFloat


class HeldOutSet(_Record):
    """Monitoring data of a version. Token ids are those of the base's tokenizer."""

    schema_version: Literal[1] = 1
    metric: MetricConfig = Field(PlainMetric(name="exact_match"), description="What an answer's score is, 0 to 1.")
    max_tokens: int = Field(ge=1, description="Longest answer; with `stop`, for versions without request defaults.")
    stop: tuple[StopString, ...] = Field((), max_length=4, description="Strings that end an answer; they stay in it.")
    questions: tuple[HeldOutQuestion, ...] = ()
    general: GeneralText | None = None
    baseline: tuple[Exchange, ...] = Field(
        (), description="The version's own answers to the questions, in random order."
    )

    def asks_as(self, other: "HeldOutSet") -> bool:
        """Whether scores of the one are scores of the other."""
        return self.questions == other.questions and self.metric == other.metric

    @field_validator("metric")
    @classmethod
    def _a_server_can_score(cls, metric: MetricConfig) -> MetricConfig:
        try:
            check_served(metric)
        except MetricError as error:
            raise ValueError(str(error)) from None
        return metric


def read_held_out(folder: Path) -> HeldOutSet | None:
    """Read the held-out questions of a version folder, or None if it has none.

    Raises:
        InvalidHeldOutError: The file is not a valid set of questions, or has its old name.
    """
    if (folder / _OLD_FILE).exists():
        raise InvalidHeldOutError(
            f"{_OLD_FILE} of {folder.name!r} is now {HELD_OUT_FILE}, in another form. Train the adapter again."
        )
    path = folder / HELD_OUT_FILE
    if not path.exists():
        return None
    try:
        return HeldOutSet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise InvalidHeldOutError(
            f"{HELD_OUT_FILE} of {folder.name!r} is broken at {'.'.join(map(str, problem['loc'])) or 'top'}: "
            f"{problem['msg']}. Write it again."
        ) from error


def write_held_out(held_out: HeldOutSet, folder: Path) -> None:
    """Write `held_out.json`; an equal set gives the same bytes."""
    path = folder / HELD_OUT_FILE
    path.touch(mode=0o600)  # held-out questions with their answers
    path.write_text(held_out.model_dump_json() + "\n", encoding="utf-8")
