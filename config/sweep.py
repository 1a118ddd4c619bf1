"""`sweep` in a domain's YAML: which settings `lorikeet sweep` varies, and between what."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator, model_validator

from config.model import Config

SettingName = Annotated[str, StringConstraints(pattern=r"^(method|(recipe|method|objective)\.[a-z_0-9]+)$")]
"""`recipe.learning_rate`, or `method` for the method's name."""


class Range(Config):
    """Numbers from `low` to `high`; whole numbers if both are."""

    low: float | int
    high: float | int
    log: bool = Field(False, description="Draw on a logarithmic scale, as is usual for rates.")

    @field_validator("low", "high", mode="before")
    @classmethod
    def _numbers_as_yaml_has_them(cls, value: Any) -> Any:
        """`1e-4` is a text in YAML 1.1."""
        return float(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _low_is_lower(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`; got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low` must be above 0 with `log: true`; got {self.low}")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = Annotated[tuple[Any, ...], Field(min_length=1)]

DEFAULT_SPACE: dict[str, Range | tuple[Any, ...]] = {
    "recipe.learning_rate": Range(low=1e-4, high=3e-3, log=True),
    "method.r": (8, 16, 32),
    "method.lora_alpha": (16, 32, 64),
    "method.target_modules": ("all-linear", ("q_proj", "v_proj")),
}


class SweepConfig(Config):
    """The search space; what a trial is judged by is `recipe.metric_for_best_model`, on the validation split."""

    trials: int = Field(20, ge=1, description="Trials in all, with those of earlier calls.")
    space: dict[SettingName, Range | Choices] = Field(
        DEFAULT_SPACE,
        min_length=1,
        description="By setting: `{low, high, log}`, or a list of values. `method` varies the method itself.",
    )
