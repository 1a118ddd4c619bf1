"""Settings of the methods that add virtual tokens or layers of their own."""

from typing import Literal

from pydantic import Field

from config.method_settings import MethodSettings


class VirtualTokenSettings(MethodSettings):
    num_virtual_tokens: int = Field(20, ge=1)


class PromptTuningMethod(VirtualTokenSettings):
    """Trained embeddings before the prompt (https://arxiv.org/abs/2104.08691)."""

    rate_factor = 30.0
    name: Literal["prompt_tuning"] = "prompt_tuning"
    prompt_tuning_init: Literal["TEXT", "RANDOM", "SAMPLE_VOCAB"] = Field(
        "SAMPLE_VOCAB", description="`SAMPLE_VOCAB`: embeddings of random tokens; `TEXT`: of `prompt_tuning_init_text`."
    )
    prompt_tuning_init_text: str | None = None


class PTuningMethod(VirtualTokenSettings):
    """Embeddings before the prompt, by a trained encoder (https://arxiv.org/abs/2103.10385)."""

    rate_factor = 3.0
    name: Literal["p_tuning"] = "p_tuning"
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: int | None = Field(None, ge=1, description="Default: the base's hidden size.")
    encoder_num_layers: int = Field(2, ge=1)
    encoder_dropout: float = Field(0.0, ge=0, lt=1)


class PrefixTuningMethod(VirtualTokenSettings):
    """Trained keys and values before the prompt, in every layer (https://arxiv.org/abs/2101.00190)."""

    rate_factor = 10.0
    name: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = False
    encoder_hidden_size: int | None = Field(None, ge=1, description="With `prefix_projection`; default: the base's.")


class BottleneckMethod(MethodSettings):
    """Small layers after attention and feed-forward (Houlsby, https://arxiv.org/abs/1902.00751) or after feed-forward
    only (Pfeiffer, https://arxiv.org/abs/2005.00247)."""

    name: Literal["bottleneck"] = "bottleneck"
    architecture: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    reduction_factor: int = Field(16, ge=1, description="Hidden size divided by the width of the added layers.")
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = "relu"
