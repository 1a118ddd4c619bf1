"""The parity verdict: a fingerprint against what the engine says."""

import re

import pytest

from serve.residency.parity import Parity, Replay, Tolerance, judge_parity
from tests.fake_engine import ADAPTER_LOGPROBS, BASE_LOGPROBS, PROMPT_IDS, fingerprint

GOLDEN = fingerprint("d" * 64, "t" * 64)


def judged(
    adapter: tuple[float, ...] = ADAPTER_LOGPROBS,
    base: tuple[float, ...] = BASE_LOGPROBS,
    rendered: tuple[int, ...] = PROMPT_IDS,
    base_nats: float = 0.15,
) -> Parity:
    return judge_parity(GOLDEN, Replay((adapter,), (base,), (rendered,)), Tolerance(0.15, base_nats))


def test_equal_log_probabilities_pass() -> None:
    assert judged() == Parity(0.0, 0.0, None)


def test_differences_of_bf16_size_pass_and_are_reported() -> None:
    parity = judged(adapter=(-0.45, -0.28), base=(-3.05, -3.98))
    assert parity.is_ok
    assert parity.adapter_error_nats == pytest.approx(0.04)
    assert parity.base_error_nats == pytest.approx(0.035)


def test_a_rounded_base_may_be_further_away_than_its_adapters() -> None:
    base = tuple(logprob - 0.3 for logprob in BASE_LOGPROBS)
    assert not judged(base=base).is_ok
    assert judged(base=base, base_nats=0.6).is_ok
    assert not judged(adapter=(-1.5, -2.25), base=base, base_nats=0.6).is_ok


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": BASE_LOGPROBS}, "no module was applied"),
        ({"adapter": (-3.05, -3.98)}, "no module was applied"),  # the base's, rounded in another batch
        ({"adapter": (-1.5, -2.25)}, r"differ by 1\.500 nats per token .* weights or its scaling"),
        ({"base": (-5.0, -6.0)}, r"base model's log-probabilities differ by 2\.000 nats per token"),
        ({"rendered": (1, 2)}, "chat template or tokenizer"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, tuple[float, ...]], reason: str) -> None:
    parity = judged(**changes)  # type: ignore[arg-type]  # token ids among the changes
    assert not parity.is_ok
    assert re.search(reason, parity.reason or "")
