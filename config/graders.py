"""Graders of reinforcement jobs, with the names and fields of OpenAI's API; each scores one answer.

Texts may contain `{{ sample.output_text }}`, `{{ sample.output_json.field }}` and `{{ item.field }}`, where `item` is
the row of the training file.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from config.model import Config
from quality.grading.formula import check_formula
from quality.grading.names import SimilarityMetric
from quality.grading.template import check_template

GraderName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Template = Annotated[str, StringConstraints(max_length=65_536)]


class StringCheckGrader(Config):
    """1 if the comparison holds, else 0."""

    type: Literal["string_check"]
    name: GraderName
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        description="`like`: the input contains the reference; `ilike`: so does it in lower case."
    )

    _templates = field_validator("input", "reference")(check_template)


class TextSimilarityGrader(Config):
    """Similarity of two texts, 0 to 1."""

    type: Literal["text_similarity"]
    name: GraderName
    input: Template
    reference: Template
    evaluation_metric: SimilarityMetric

    _templates = field_validator("input", "reference")(check_template)


class GraderMessage(Config):
    """One message to the grading model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Template
    type: Literal["message"] = "message"

    @field_validator("content", mode="before")
    @classmethod
    def _text_parts_are_joined(cls, content: Any) -> Any:
        parts = [content] if isinstance(content, dict) else content
        if not isinstance(parts, list):
            return content
        found = [part.get("text") if isinstance(part, dict) else part for part in parts]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) < len(found):
            raise ValueError("must be text, or parts of text; images and audio cannot be graded")
        return "".join(texts)

    _templates = field_validator("content")(check_template)


class GraderSampling(Config):
    """Sampling of the grading model."""

    max_completions_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None


class ScoreModelGrader(Config):
    """A model gives the score."""

    type: Literal["score_model"]
    name: GraderName
    model: str = Field(min_length=1, description="A model of the server that runs the job.")
    input: tuple[GraderMessage, ...] = Field(min_length=1)
    range: tuple[float, float] = Field((0.0, 1.0), description="Lowest and highest score.")
    sampling_params: GraderSampling = GraderSampling()

    @field_validator("range")
    @classmethod
    def _the_range_rises(cls, scores: tuple[float, float]) -> tuple[float, float]:
        if scores[0] >= scores[1]:
            raise ValueError(f"must be a lower and a higher number, as [0, 1]; got {list(scores)}")
        return scores


SingleGrader = Annotated[StringCheckGrader | TextSimilarityGrader | ScoreModelGrader, Field(discriminator="type")]


class MultiGrader(Config):
    """A formula of other graders' scores, which it knows by their keys."""

    type: Literal["multi"]
    name: GraderName
    graders: dict[str, SingleGrader] = Field(min_length=1, max_length=20)
    calculate_output: str = Field(
        max_length=1000, description="As `0.8 * exact + 0.2 * style`; min, max, abs, floor, ceil, exp, sqrt, log."
    )

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, graders: Any) -> Any:
        """OpenAI's clients also send one grader, or a list of them: their names are the keys."""
        if isinstance(graders, dict) and isinstance(graders.get("type"), str):
            graders = [graders]
        if isinstance(graders, list) and all(isinstance(one, dict) for one in graders):
            return {str(one.get("name")): one for one in graders}
        return graders

    @model_validator(mode="after")
    def _the_formula_knows_its_graders(self) -> "MultiGrader":
        check_formula(self.calculate_output, set(self.graders))
        return self


GraderConfig = Annotated[
    StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | MultiGrader, Field(discriminator="type")
]


def single_graders(grader: "GraderConfig") -> tuple[StringCheckGrader | TextSimilarityGrader | ScoreModelGrader, ...]:
    """The graders of a `multi` one, or the grader itself."""
    return tuple(grader.graders.values()) if isinstance(grader, MultiGrader) else (grader,)


def templates_of(grader: "GraderConfig") -> tuple[str, ...]:
    """All texts with placeholders."""
    texts: list[str] = []
    for one in single_graders(grader):
        texts += [m.content for m in one.input] if isinstance(one, ScoreModelGrader) else [one.input, one.reference]
    return tuple(texts)
