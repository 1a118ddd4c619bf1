"""Settings of the methods whose result is converted to a LoRA. Each has PEFT's names.

Not here: DoRA, whose magnitude PEFT's conversion leaves out.
"""

from typing import Literal

from pydantic import Field, field_validator

from config.method_settings import LayerSettings

AFTER_TRAINING = ("convert_rank", "max_conversion_error")
"""Keys that can be changed without training again."""


class ConvertedSettings(LayerSettings):
    """Conversion: each layer's change is cut to its largest singular values."""

    convert_rank: int | float = Field(
        0.999,
        gt=0,
        description="Rank of the LoRA (16), or the share of squared singular values to keep in each layer (0.999), "
        "with at most the rank that can be served.",
    )
    max_conversion_error: float = Field(
        0.05,
        gt=0,
        description="Nats per token by which the converted adapter may differ from the trained one on held-out "
        "answers, on average; above it, nothing is published. 0.05: a probability changes by 5%.",
    )

    @field_validator("convert_rank")
    @classmethod
    def _a_share_is_at_most_one(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value > 1:
            raise ValueError(f"must be a rank (a whole number), or a share of at most 1; got {value}")
        return value


class VeraMethod(ConvertedSettings):
    """Shared random projections, trained scaling vectors (https://arxiv.org/abs/2310.11454)."""

    rate_factor = 10.0
    name: Literal["vera"] = "vera"
    r: int = Field(256, ge=1)
    vera_dropout: float = Field(0.0, ge=0, lt=1)
    d_initial: float = 0.1
    projection_prng_key: int = 0


class LohaMethod(ConvertedSettings):
    """Hadamard product of two low-rank products (https://arxiv.org/abs/2108.06098)."""

    name: Literal["loha"] = "loha"
    r: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1)
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)


class LokrMethod(ConvertedSettings):
    """Kronecker product (https://arxiv.org/abs/2309.14859)."""

    name: Literal["lokr"] = "lokr"
    r: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1)
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    decompose_both: bool = False
    decompose_factor: int = -1


class DeloraMethod(ConvertedSettings):
    """Normalised low-rank factors and a trained strength (https://arxiv.org/abs/2503.18225)."""

    name: Literal["delora"] = "delora"
    r: int = Field(8, ge=1)
    delora_lambda: int = Field(15, ge=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)


class FourierftMethod(ConvertedSettings):
    """Trained coefficients of the change's Fourier transform (https://arxiv.org/abs/2405.03003)."""

    rate_factor = 10.0
    name: Literal["fourierft"] = "fourierft"
    n_frequency: int = Field(1000, ge=1)
    scaling: float = 150.0
    random_loc_seed: int = 777


class RandloraMethod(ConvertedSettings):
    """Trained sums of random low-rank products: full rank (https://arxiv.org/abs/2502.00987)."""

    name: Literal["randlora"] = "randlora"
    r: int = Field(32, ge=1)
    randlora_alpha: int = Field(640, ge=1)
    randlora_dropout: float = Field(0.0, ge=0, lt=1)
    projection_prng_key: int = 0


class MissMethod(ConvertedSettings):
    """Matrix shard sharing: one trained factor, a fixed sum (https://arxiv.org/abs/2409.15371)."""

    name: Literal["miss"] = "miss"
    r: int = Field(64, ge=1)
    miss_dropout: float = Field(0.0, ge=0, lt=1)


class C3aMethod(ConvertedSettings):
    """Block-circulant change (https://arxiv.org/abs/2407.19342); `block_size` divides the sizes of all layers."""

    rate_factor = 10.0
    name: Literal["c3a"] = "c3a"
    block_size: int = Field(64, ge=1)


class GraloraMethod(ConvertedSettings):
    """LoRA in blocks (https://arxiv.org/abs/2505.20355)."""

    name: Literal["gralora"] = "gralora"
    r: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    gralora_k: int = Field(2, ge=1)
    gralora_dropout: float = Field(0.0, ge=0, lt=1)
    hybrid_r: int = Field(0, ge=0)


class WaveftMethod(ConvertedSettings):
    """Trained coefficients of the change's wavelet transform (https://arxiv.org/abs/2505.12532)."""

    rate_factor = 10.0
    name: Literal["waveft"] = "waveft"
    n_frequency: int = Field(2592, ge=1)
    scaling: float = 25.0
    random_loc_seed: int = 777


class VbloraMethod(ConvertedSettings):
    """LoRA's factors from one bank of vectors (https://arxiv.org/abs/2405.15179)."""

    rate_factor = 10.0
    name: Literal["vblora"] = "vblora"
    r: int = Field(4, ge=1)
    num_vectors: int = Field(256, ge=1)
    vector_length: int = Field(64, ge=1, description="Divides the sizes of all layers.")
    topk: int = Field(2, ge=1)
    vblora_dropout: float = Field(0.0, ge=0, lt=1)


class PsoftMethod(ConvertedSettings):
    """Orthogonal change within the main singular space (https://arxiv.org/abs/2505.11235)."""

    name: Literal["psoft"] = "psoft"
    r: int = Field(32, ge=1)
    psoft_alpha: int = Field(32, ge=1)
    psoft_dropout: float = Field(0.0, ge=0, lt=1)


class UniloraMethod(ConvertedSettings):
    """All of LoRA's factors from one trained vector (https://arxiv.org/abs/2506.00799)."""

    rate_factor = 10.0
    name: Literal["unilora"] = "unilora"
    r: int = Field(4, ge=1)
    theta_d_length: int = Field(256, ge=1)
    unilora_dropout: float = Field(0.0, ge=0, lt=1)


class TinyloraMethod(ConvertedSettings):
    """A few trained numbers in the base's own singular space (https://arxiv.org/abs/2602.04118)."""

    rate_factor = 10.0
    name: Literal["tinylora"] = "tinylora"
    r: int = Field(2, ge=1)
    u: int = Field(64, ge=1)
    weight_tying: float = Field(0.0, ge=0, le=1)
    tinylora_dropout: float = Field(0.0, ge=0, lt=1)
