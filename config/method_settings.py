"""What all methods have in common."""

from typing import ClassVar

from pydantic import Field

from config.model import Config


class MethodSettings(Config):
    """What all methods tell of themselves."""

    rate_factor: ClassVar[float] = 1.0
    """Default learning rate relative to LoRA's, which the objective or the recipe has."""


class LayerSettings(MethodSettings):
    """Methods that change linear layers."""

    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="Short names of layers (`q_proj`), or `all-linear`: all but `lm_head`."
    )
    layers_to_transform: int | tuple[int, ...] | None = Field(
        None, description="Numbers of the decoder layers that are changed, from 0. Default: all."
    )
