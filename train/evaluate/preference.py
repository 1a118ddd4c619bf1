"""Held-out preferences: which answer the adapter makes more probable, by itself and against its reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft import PeftModel

from adapters.scores import Score, mean_score, score_of
from adapters.store.evaluation_records import ObjectiveScore
from train.data.encode import Encoded
from train.evaluate.fingerprint import answer_logprobs
from train.evaluate.local import without_adapter
from train.evaluate.paired import above_chance, paired_share
from train.methods.method import Trainable

REFERENCE_ADAPTER = "ref"
"""TRL's name of the frozen copy of the adapter that training started from."""


@contextmanager
def as_reference(model: Trainable) -> Iterator[None]:
    """The adapter that training started from, or none."""
    if not isinstance(model, PeftModel) or REFERENCE_ADAPTER not in model.peft_config:
        with without_adapter(model):
            yield
        return
    active = model.active_adapter
    model.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        model.set_adapter(active)


def pair_scores(model: Trainable, pairs: Sequence[tuple[Encoded, Encoded]], beta: float) -> dict[str, ObjectiveScore]:
    """Of (chosen, rejected) pairs.

    - `reward_accuracy`: share of pairs whose chosen answer gained more log-probability over the reference than the
      rejected one. The reference itself ties on every pair: 0.5.
    - `reward_margin`: mean of beta times that difference, nats.
    - `preference_accuracy`: share of pairs whose chosen answer has the higher mean log-probability per token.
    """
    policy = [(answer_logprobs(model, chosen), answer_logprobs(model, rejected)) for chosen, rejected in pairs]
    with as_reference(model):
        reference = [(answer_logprobs(model, chosen), answer_logprobs(model, rejected)) for chosen, rejected in pairs]
    margins = [
        beta * ((sum(own[0]) - sum(ref[0])) - (sum(own[1]) - sum(ref[1])))
        for own, ref in zip(policy, reference, strict=True)
    ]
    preferred, before = ([_mean(good) > _mean(bad) for good, bad in side] for side in (policy, reference))
    return {
        "reward_accuracy": above_chance([margin > 0 for margin in margins]),
        "reward_margin": ObjectiveScore(adapter=mean_score(margins)),
        "preference_accuracy": ObjectiveScore(
            base=_share(before), adapter=_share(preferred), paired_gain=paired_share(before, preferred)
        ),
    }


def label_scores(model: Trainable, labelled: Sequence[tuple[Encoded, bool]]) -> dict[str, ObjectiveScore]:
    """`label_accuracy`: share of answers that gained log-probability over the reference if good, and lost it if bad."""
    policy = [sum(answer_logprobs(model, answer)) for answer, _ in labelled]
    with as_reference(model):
        reference = [sum(answer_logprobs(model, answer)) for answer, _ in labelled]
    rewards = [own - ref for own, ref in zip(policy, reference, strict=True)]
    right = [reward > 0 if label else reward < 0 for reward, (_, label) in zip(rewards, labelled, strict=True)]
    return {"label_accuracy": above_chance(right)}


def _share(right: Sequence[bool]) -> Score:
    return score_of(sum(right), len(right))


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs)
