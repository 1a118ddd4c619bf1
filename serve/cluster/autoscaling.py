"""How many replicas a base needs, by what runs and waits in each of them. Ray's controller calls `wanted_replicas`.

Ray applies the delays and limits of `autoscaling_options`. It copies this module by value: only the standard library.
"""

from collections.abc import Collection
from typing import Any

LOAD = "lorikeet_load"
"""The metric that replicas report."""

_MAX_LOOK_BACK_S = 30.0


def engine_load(num_sequences: int, max_sequences: int, num_tokens: float, kv_tokens: int | None) -> float:
    """What runs and waits, as a share of what an engine holds: in sequences or in tokens, the larger.

    Args:
        num_tokens: Of prompts, and of answers at their maximum length.
        kv_tokens: Size of the KV cache; None if unknown.
    """
    by_tokens = num_tokens / kv_tokens if kv_tokens else 0.0
    return max(num_sequences / max_sequences, by_tokens)


def replicas_for(loads: Collection[float], num_replicas: int, target_load: float) -> float:
    """Replicas that bring the mean load to the target; as many as there are while none has reported.

    Args:
        loads: Of the replicas that have reported; the others count as their mean.
        num_replicas: That run.
    """
    if not loads:
        return float(num_replicas)
    return sum(loads) / len(loads) * num_replicas / target_load


class WantedReplicas:
    """The policy, with Ray's context of a deployment."""

    def __init__(self, target_load: float) -> None:
        self._target_load = target_load

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Wanted replicas, and no state of its own. At zero replicas Ray itself starts one for the first request."""
        if context.current_num_replicas == 0:
            return float(context.target_num_replicas), {}
        loads = (context.aggregated_metrics or {}).get(LOAD, {}).values()
        return replicas_for(list(loads), context.current_num_replicas, self._target_load), {}


def autoscaling_options(
    num_replicas: int,
    max_replicas: int,
    *,
    target_load: float,
    scale_up_after_s: float,
    scale_down_after_s: float,
    scale_to_zero_after_s: float,
) -> dict[str, Any]:
    """Ray's `autoscaling_config`."""
    return {
        "min_replicas": num_replicas,
        "initial_replicas": max(1, num_replicas),
        "max_replicas": max_replicas,
        "look_back_period_s": min(_MAX_LOOK_BACK_S, scale_up_after_s, scale_down_after_s),
        "upscale_delay_s": scale_up_after_s,
        "downscale_delay_s": scale_down_after_s,
        "downscale_to_zero_delay_s": scale_to_zero_after_s,
        "policy": {
            "policy_function": "serve.cluster.autoscaling:WantedReplicas",
            "policy_kwargs": {"target_load": target_load},
        },
    }
