"""A task that waits for the engine ends when it is cancelled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

from config.serve import ServeConfig
from serve.engine.engine import VllmEngine
from serve.records import Caller

pytestmark = pytest.mark.anyio


class Unanswered(VllmEngine):
    """vLLM's own serving class waits for a generation that never comes."""

    def _require_llm(self) -> Any:
        return None

    async def _create(self, endpoint: Any, parsed: Any) -> Any:
        async def nothing() -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        nobody = cast(Any, None)
        serving = OpenAIServingChat.__new__(OpenAIServingChat)
        return await serving.chat_completion_full_generator(parsed, nothing(), "1", "base", [], nobody, nobody)


@pytest.fixture
def engine(tmp_path: Path) -> Unanswered:
    return Unanswered(ServeConfig(base="base"), tmp_path, cast(Any, None))


BODY = {"model": "base", "messages": [{"role": "user", "content": "Which tree?"}]}


async def test_a_task_that_is_cancelled_while_it_asks_ends(engine: Unanswered) -> None:
    async def ask_again_and_again() -> None:
        while True:
            await engine.answer("chat/completions", BODY, Caller("monitor"))

    task = asyncio.create_task(ask_again_and_again())
    await asyncio.sleep(0.05)
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_deadline_is_a_timeout(engine: Unanswered) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.answer("chat/completions", BODY, Caller("monitor"))
