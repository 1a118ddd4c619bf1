"""`autoscaling` of `config/serve.yaml`: how many replicas `lorikeet serve --cluster ray` runs."""

from pydantic import Field

from config.model import Config


class AutoscalingConfig(Config):
    """How the number of replicas follows the load, between `--replicas` and `--max-replicas`.

    The load of a replica is its running and waiting sequences as a share of `max_num_seqs`, or their tokens as a share
    of its KV cache, whichever is larger.
    """

    target_load: float = Field(
        0.8, gt=0, description="Target load of a replica; 1: its engine is full and no request waits."
    )
    scale_up_after_s: float = Field(
        30.0, ge=1, description="Add replicas after the load has been above the target for this time, seconds."
    )
    scale_down_after_s: float = Field(
        600.0,
        ge=1,
        description="Remove replicas after the load has been below the target for this time, seconds.",
    )
    scale_to_zero_after_s: float = Field(
        1800.0,
        ge=1,
        description="With `--replicas 0`: stop the last replica after this time without a request, seconds.",
    )
