"""What a domain's YAML says of its training: the objective, the method, and the recipe of the run."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from config.method import LoraMethod, MethodConfig
from config.model import Config
from config.objective import ObjectiveConfig, ReinforcementObjective, SftObjective, VersionReference

Optimizer = Literal[
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "adagrad",
    "rmsprop",
    "sgd",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "paged_lion_8bit",
]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "warmup_stable_decay",
]
Tracker = Literal["mlflow", "tensorboard", "trackio", "wandb"]


class RecipeConfig(Config):
    """Settings of the optimiser and of the run, by TRL's names."""

    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="Default: that of the objective, if it has one, times the method's factor (docs/training.md).",
    )
    optim: Optimizer = Field(
        "auto", description="auto: `paged_adamw_8bit` on a CUDA GPU, `adamw_torch_fused` on a CPU."
    )
    lr_scheduler_type: Scheduler = "cosine"
    lr_scheduler_kwargs: dict[str, Annotated[int | float | str, Field(union_mode="left_to_right")]] = Field(
        {}, description="Further settings of the schedule, as `{min_lr_rate: 0.1}` of `cosine_with_min_lr`."
    )
    warmup_steps: float = Field(0.05, ge=0, description="Warmup steps, or a share of all steps if below 1.")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="Noise on the embeddings in training (https://arxiv.org/abs/2310.05914); 5 is usual."
    )
    label_smoothing_factor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each token's target spread over the vocabulary, also in the held-out loss.",
    )
    max_steps: int = Field(80, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="Compute activations twice to save memory; auto: if they would not fit."
    )
    packing: bool = Field(
        False,
        description="Several examples in one row of `max_length` tokens; none attends to another. For rows of very "
        "different lengths on a GPU; on a CPU examples share what they begin with instead, which is faster.",
    )
    max_length: int = Field(256, ge=16, description="Maximum tokens per example; see `data.cut_long_inputs`.")
    eval_steps: int = Field(20, ge=1)
    metric_for_best_model: Literal["eval_loss", "exact_match"] = Field(
        "eval_loss",
        description="Which weights are kept: of the lowest loss, or of the highest score, on the validation split.",
    )
    early_stopping_patience: int = Field(
        2, ge=1, description="Evaluations without a better `metric_for_best_model` before training stops."
    )
    seed: int = Field(13, ge=0, lt=2**31)
    replay_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of general rows among the training rows, against forgetting: those of `data.replay`, or the "
        "base's own answers to general requests.",
    )
    template_date: date | Literal["today", "varied"] = Field(
        "today",
        description="For bases whose chat template writes the date: `today` is the day on which the run begins; a date "
        "(2026-11-28) is fixed; `varied` gives each example another date within three years from today.",
    )
    report_to: tuple[Tracker, ...] = Field((), description="Where the run is recorded; each is local by default.")


class TrainingConfig(Config):
    """What training minimises, which weights it changes, and how it runs."""

    model_config = ConfigDict(serialize_by_alias=True)

    objective: ObjectiveConfig = Field(SftObjective(), description="What training minimises (docs/training.md).")
    method: MethodConfig = Field(LoraMethod(), description="Which weights training changes (docs/training.md).")
    from_version: VersionReference | None = Field(
        None,
        alias="from",
        description="Published version to start from (`medical@3`); preference objectives take it as their reference.",
    )
    recipe: RecipeConfig = RecipeConfig()

    @property
    def training_arguments(self) -> dict[str, Any]:
        """What determines a run on given rows and base, as JSON values; recorded in the version's manifest."""
        return self.recipe.model_dump(mode="json", exclude={"report_to"}) | {
            "objective": self.objective.model_dump(mode="json"),
            "method": self.method.model_dump(mode="json"),
            "from": self.from_version,
        }

    @model_validator(mode="after")
    def _the_rate_follows(self) -> "TrainingConfig":
        if "learning_rate" not in self.recipe.model_fields_set:
            rate = (self.objective.learning_rate or self.recipe.learning_rate) * self.method.rate_factor
            object.__setattr__(self, "recipe", self.recipe.model_copy(update={"learning_rate": rate}))
        return self

    @model_validator(mode="after")
    def _the_recipe_fits_the_objective(self) -> "TrainingConfig":
        recipe, name = self.recipe, self.objective.name
        for key, value in (
            ("neftune_noise_alpha", recipe.neftune_noise_alpha),
            ("label_smoothing_factor", recipe.label_smoothing_factor),
            ("packing", recipe.packing),
            ("replay_share", recipe.replay_share),
        ):
            if value and name != "sft":
                raise ValueError(f"`recipe.{key}` acts with `objective: sft` only; got {value} with {name!r}")
        if recipe.packing and recipe.label_smoothing_factor:
            raise ValueError("`recipe.packing` does not go with `recipe.label_smoothing_factor`: set it to 0")
        if recipe.metric_for_best_model != "eval_loss" and name in ("text", "reward"):
            raise ValueError(
                f"`recipe.metric_for_best_model: {recipe.metric_for_best_model}` requires an objective with answers; "
                f"with `objective: {name}` use eval_loss"
            )
        return self

    @model_validator(mode="after")
    def _the_batch_fits_the_objective(self) -> "TrainingConfig":
        batch_size, objective = self.recipe.per_device_train_batch_size, self.objective
        if objective.name == "kto" and batch_size < 2:
            raise ValueError("`objective: kto` requires `recipe.per_device_train_batch_size` 2 or more; got 1")
        if isinstance(objective, ReinforcementObjective):
            num_answers = batch_size * self.recipe.gradient_accumulation_steps
            if num_answers % objective.num_generations:
                raise ValueError(
                    f"`objective: {objective.name}` samples `num_generations` {objective.num_generations} answers for "
                    f"each prompt: answers of a step (`recipe.per_device_train_batch_size` times "
                    f"`recipe.gradient_accumulation_steps`, now {num_answers}) must be a multiple of it"
                )
        return self
