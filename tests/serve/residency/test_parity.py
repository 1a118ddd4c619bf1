"""The parity verdict: a fingerprint against what the engine says."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from adapters.reference import Target
from serve.residency.parity import Parity, Replay, Tolerance, judge_parity, replay
from tests.fake_engine import ADAPTER_LOGPROBS, BASE_LOGPROBS, PROMPT_IDS, FakeEngine, fingerprint

GOLDEN = fingerprint("d" * 64, "t" * 64)


def judged(
    adapter: tuple[float, ...] = ADAPTER_LOGPROBS,
    base: tuple[float, ...] = BASE_LOGPROBS,
    rendered: tuple[int, ...] = PROMPT_IDS,
    base_nats: float = 0.15,
) -> Parity:
    return judge_parity(GOLDEN, Replay((adapter,), (base,), (rendered,)), Tolerance(0.15, base_nats))


class ToolsEngine(FakeEngine):
    """Renders a conversation as its tools' names."""

    def render(
        self, messages: Sequence[dict[str, Any]], at: datetime | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        return [tool["id"] for tool in tools]


@pytest.mark.anyio
async def test_golden_prompts_are_rendered_with_their_tools() -> None:
    prompt = GOLDEN.prompts[0].model_copy(update={"tools": tuple({"id": number} for number in PROMPT_IDS)})
    replayed = await replay(GOLDEN.model_copy(update={"prompts": (prompt,)}), ToolsEngine(), Target("medical", 1))
    assert replayed.rendered_token_ids == (PROMPT_IDS,)


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
