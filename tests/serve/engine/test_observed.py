"""What is counted of a generation of which its reader has seen nothing, or less than the engine has made."""

from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine.calls import EngineCall
from serve.engine.observed import _Watch
from serve.records import Caller, RequestResult


def state(prompt_len: int, num_made: int) -> Any:
    """As much of vLLM's `RequestState` as is looked at."""
    return SimpleNamespace(prompt_len=prompt_len, detokenizer=SimpleNamespace(num_output_tokens=lambda: num_made))


@pytest.mark.anyio
async def test_whoever_leaves_is_charged_by_the_engines_count() -> None:
    result = RequestResult()
    watch = _Watch(None, EngineCall(Caller("client", "acme", "r-1"), result))
    watch.states = [state(7, 5), state(7, 6)]
    record = watch.record("cancelled")
    assert (record.num_prompt_tokens, record.num_completion_tokens, result.num_tokens) == (7, 11, 18)
