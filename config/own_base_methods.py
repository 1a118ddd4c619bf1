"""Settings of the methods whose result is a base of its own."""

from typing import Literal

from pydantic import Field

from config.method_settings import LayerSettings, MethodSettings


class Ia3Method(MethodSettings):
    """Trained scaling of keys, values and the inner activations (https://arxiv.org/abs/2205.05638)."""

    rate_factor = 3.0
    name: Literal["ia3"] = "ia3"
    target_modules: str | tuple[str, ...] = Field(
        ("k_proj", "v_proj", "down_proj"), description="Short names of layers; `all-linear`: all but `lm_head`."
    )
    feedforward_modules: tuple[str, ...] = Field(
        ("down_proj",), description="Those of `target_modules` whose input is scaled instead of their output."
    )


class OftMethod(LayerSettings):
    """Rotation of blocks of each layer's input (https://arxiv.org/abs/2306.07280)."""

    name: Literal["oft"] = "oft"
    oft_block_size: int = Field(32, ge=1, description="Divides the sizes of all layers.")
    module_dropout: float = Field(0.0, ge=0, lt=1)
    coft: bool = False


class BoftMethod(LayerSettings):
    """Rotation by butterfly factors (https://arxiv.org/abs/2311.06243)."""

    name: Literal["boft"] = "boft"
    boft_block_size: int = Field(4, ge=1, description="Divides the sizes of all layers.")
    boft_n_butterfly_factor: int = Field(1, ge=1)
    boft_dropout: float = Field(0.0, ge=0, lt=1)


class FullMethod(MethodSettings):
    """All weights of the base are trained."""

    rate_factor = 0.1
    name: Literal["full"] = "full"
