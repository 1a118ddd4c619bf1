"""What is counted of a generation of which its reader has seen nothing, or less than the engine has made."""

from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine.observed import _Watch
from serve.records import RequestContext, current_request


def state(prompt_len: int, num_made: int) -> Any:
    """As much of vLLM's `RequestState` as is looked at."""
    return SimpleNamespace(prompt_len=prompt_len, detokenizer=SimpleNamespace(num_output_tokens=lambda: num_made))


@pytest.mark.anyio
async def test_whoever_leaves_is_charged_by_the_engines_count() -> None:
    context = RequestContext("acme", "r-1")
    current_request.set(context)
    watch = _Watch(None)
    watch.states = [state(7, 5), state(7, 6)]
    record = watch.record("cancelled")
    assert (record.num_prompt_tokens, record.num_completion_tokens, context.num_tokens) == (7, 11, 18)
