"""`objective` in a domain's YAML: what training minimises, with TRL's names and defaults.

`objective: dpo` is short for `objective: {name: dpo}`. An objective refuses the keys of others.
"""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from config.dataset_types import DatasetType
from config.graders import GraderConfig, ScoreModelGrader, single_graders
from config.model import Config, named_settings

DpoLoss = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "apo_zero", "apo_down"]
VersionReference = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}@[1-9][0-9]*$")]
"""`medical@3`: the version that training starts from, or that scores answers."""


class ObjectiveSettings(Config):
    """What all objectives tell of themselves."""

    data_types: ClassVar[tuple[DatasetType, ...]]
    learning_rate: ClassVar[float | None] = None
    """Where the recipe has none: ten times TRL's default, which is one for full fine-tuning."""


class TextObjective(ObjectiveSettings):
    """Language modelling on raw text; documents are packed into rows of `recipe.max_length` tokens."""

    data_types = ("language_modeling",)
    learning_rate = 2e-4
    name: Literal["text"] = "text"


class SftObjective(ObjectiveSettings):
    """Supervised fine-tuning on answers."""

    data_types = ("prompt_completion",)
    name: Literal["sft"] = "sft"
    loss_on: Literal["all", "last"] = Field(
        "all", description="Assistant turns with loss: all of weight 1, or the last of each conversation."
    )


class DpoObjective(ObjectiveSettings):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290)."""

    data_types = ("preference",)
    learning_rate = 1e-5
    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the reference; tau of `ipo`.")
    loss_type: DpoLoss = Field(
        "sigmoid", description="`sigmoid_norm` divides log-probabilities by the number of tokens, as `ipo` does."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Assumed share of flipped pairs; for `robust` only.")

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "DpoObjective":
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError(f"`label_smoothing` acts with `loss_type: robust` only; got {self.loss_type!r}")
        return self


class KtoObjective(ObjectiveSettings):
    """Kahneman-Tversky optimisation: single answers, each labelled good or bad (https://arxiv.org/abs/2402.01306)."""

    data_types = ("unpaired_preference",)
    learning_rate = 1e-5
    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the reference.")
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: float = Field(1.0, ge=0)
    undesirable_weight: float = Field(1.0, ge=0)


class OrpoObjective(ObjectiveSettings):
    """Odds-ratio preference optimisation: no reference (https://arxiv.org/abs/2403.07691)."""

    data_types = ("preference",)
    learning_rate = 1e-5
    name: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0, description="Weight of the odds ratio.")


class RewardWeights(Config):
    """Weights of the domain's own scorers in the reward of an answer."""

    exact_match: float = Field(1.0, ge=0)
    valid_format: float = Field(0.0, ge=0, description="Format: `answer.json_schema` and `quality.answer_pattern`.")


class ReinforcementObjective(ObjectiveSettings):
    """Settings of both reinforcement objectives."""

    data_types = ("prompt_completion", "prompt_only")
    learning_rate = 1e-5
    num_generations: int = Field(8, ge=2, description="Answers sampled for each prompt.")
    max_completion_length: int | None = Field(
        None, ge=1, description="Tokens of a sampled answer. Default: `evaluation.max_new_tokens`."
    )
    temperature: float = Field(1.0, gt=0)
    reward_weights: RewardWeights = RewardWeights()
    reward_model: VersionReference | None = Field(
        None, description="Version of `objective: reward` whose score is added to the reward."
    )

    grader: GraderConfig | None = Field(
        None, description="Grader in OpenAI's form whose score is added to the reward (docs/training.md)."
    )
    grader_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenAI-compatible base URL of the models of `score_model` graders, as http://127.0.0.1:8000/v1.",
    )
    grader_api_key_env: str | None = Field(
        None, min_length=1, description="Environment variable that holds the API key of `grader_url`."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_grader_stands_alone(cls, values: Any) -> Any:
        """With a grader, the expected answers count only if weights are set: rows of graders often have none."""
        if isinstance(values, dict) and values.get("grader") and "reward_weights" not in values:
            return values | {"reward_weights": {"exact_match": 0}}
        return values

    @model_validator(mode="after")
    def _a_grading_model_has_a_place(self) -> "ReinforcementObjective":
        graders = single_graders(self.grader) if self.grader is not None else ()
        asked = [one.name for one in graders if isinstance(one, ScoreModelGrader)]
        if asked and self.grader_url is None:
            raise ValueError(f"`grader_url` must name the server whose model the grader {asked[0]!r} asks")
        return self

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> "ReinforcementObjective":
        weights = self.reward_weights
        if not (weights.exact_match or weights.valid_format or self.reward_model or self.grader):
            raise ValueError("`reward_weights` are all 0, so every answer gets the same reward")
        return self


class GrpoObjective(ReinforcementObjective):
    """Group relative policy optimisation (https://arxiv.org/abs/2402.03300)."""

    name: Literal["grpo"] = "grpo"
    beta: float = Field(0.0, ge=0, description="Weight of the KL divergence from the reference; 0: no reference.")
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"


class RlooObjective(ReinforcementObjective):
    """REINFORCE leave-one-out (https://arxiv.org/abs/2402.14740)."""

    name: Literal["rloo"] = "rloo"
    num_generations: int = Field(2, ge=2, description="Answers sampled for each prompt.")
    beta: float = Field(0.05, ge=0, description="Weight of the KL divergence from the reference; 0: no reference.")


class RewardObjective(ObjectiveSettings):
    """A reward model: scores answers, and gives none itself."""

    data_types = ("preference",)
    learning_rate = 1e-3
    name: Literal["reward"] = "reward"
    center_rewards_coefficient: float | None = Field(
        None, ge=0, description="Weight of a term that keeps the mean reward at zero; 0.01 is usual."
    )


ObjectiveConfig = Annotated[
    Annotated[
        TextObjective
        | SftObjective
        | DpoObjective
        | KtoObjective
        | OrpoObjective
        | GrpoObjective
        | RlooObjective
        | RewardObjective,
        Field(discriminator="name"),
    ],
    named_settings("sft"),
]


def objectives_for(data_type: DatasetType) -> list[str]:
    """Names of the objectives that train on data sets of a type."""
    union, *_ = get_args(ObjectiveConfig)
    return [str(one.model_fields["name"].default) for one in get_args(union) if data_type in one.data_types]
