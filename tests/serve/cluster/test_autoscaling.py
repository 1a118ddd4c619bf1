"""How many replicas a load is worth."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from config.cluster import AutoscalingConfig as Settings
from serve.cluster.autoscaling import LOAD, WantedReplicas, autoscaling_options, engine_load, replicas_for


def context(current, loads, target=1):
    metrics = {LOAD: {f"replica {number}": load for number, load in enumerate(loads)}}
    return SimpleNamespace(current_num_replicas=current, target_num_replicas=target, aggregated_metrics=metrics)


@pytest.mark.parametrize(
    ("num_sequences", "num_tokens", "kv_tokens", "load"),
    [(16, 100, 1000, 0.5), (16, 900, 1000, 0.9), (64, 100, None, 2.0), (0, 0, 1000, 0.0)],
)
def test_load_is_sequences_or_tokens_whichever_is_more(num_sequences, num_tokens, kv_tokens, load):
    assert engine_load(num_sequences, 32, num_tokens, kv_tokens) == load


def test_replicas_bring_the_load_to_the_target():
    assert replicas_for([1.6], 1, 0.8) == 2
    assert replicas_for([0.2, 0.2], 2, 0.8) == 0.5


def test_a_replica_that_has_not_reported_counts_as_the_mean():
    assert replicas_for([1.6], 2, 0.8) == 4


@pytest.mark.parametrize(("current", "loads", "wanted"), [(2, [], 2), (1, [1.2], 2), (2, [0.1, 0.1], 1), (0, [], 1)])
def test_the_policy_reads_what_replicas_report(current, loads, wanted):
    replicas, state = WantedReplicas(0.8)(context(current, loads))
    assert -(-replicas // 1) == wanted
    assert state == {}


@pytest.mark.parametrize(("fewest", "initial"), [(0, 1), (1, 1), (2, 2)])
def test_ray_accepts_the_options(fewest, initial):
    config = AutoscalingConfig(**autoscaling_options(fewest, 4, **Settings().model_dump()))
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (fewest, initial, 4)
    policy = config.policy.get_policy()
    assert policy(**config.policy.policy_kwargs)(context(1, [1.6]))[0] == 2
