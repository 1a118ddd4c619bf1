"""Settings of LoRA and DoRA."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator

from config.method_settings import LayerSettings

CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that take the initial factors out of the base's weights; `pissa_niter_16` is one of `pissa`."""
_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica", "loftq", *CHANGES_BASE)


class LoraSettings(LayerSettings):
    """LoRA (https://arxiv.org/abs/2106.09685)."""

    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732).")
    rank_pattern: dict[str, PositiveInt] = Field({}, description="Ranks of single layers, by the end of their names.")
    alpha_pattern: dict[str, PositiveInt] = Field({}, description="Alphas of single layers, by the end of their names.")
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: learning rate of B as a multiple of A's; 16 is usual (arXiv 2402.12354)."
    )


class LoraMethod(LoraSettings):
    name: Literal["lora"] = "lora"
    init_lora_weights: bool | str = Field(
        True,
        description="`true`, `gaussian`, `orthogonal`, `mica`, `eva`, `pissa`, `pissa_niter_16`, `olora`, `corda` or "
        "`lora_ga`. What the last five train is converted to a LoRA of twice the rank.",
    )

    @field_validator("init_lora_weights")
    @classmethod
    def _pefts(cls, value: bool | str) -> bool | str:
        kind = initialisation(value)
        number = str(value).lower().partition("_niter_")[2]
        if (kind and kind not in _INITIALISATIONS) or (number and (kind != "pissa" or not number.isdecimal())):
            raise ValueError(f"must be true or one of {', '.join(_INITIALISATIONS)}; got {value!r}")
        return value


class DoraMethod(LoraSettings):
    """Weight-decomposed LoRA: a magnitude for each output row (https://arxiv.org/abs/2402.09353)."""

    name: Literal["dora"] = "dora"


def initialisation(value: bool | str) -> str:
    """Kind of `init_lora_weights`: `pissa` for `pissa_niter_16`; "" for PEFT's default."""
    return "" if isinstance(value, bool) else value.lower().split("_niter_")[0]
