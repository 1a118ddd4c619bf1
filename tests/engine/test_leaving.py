"""A client that leaves the real server is charged for what the engine made, and its places are free."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.live_server import BASE_NAME, LiveServer, counted

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

NUM_PROMPTS = 3
LONG: dict[str, Any] = {"model": BASE_NAME, "prompt": ["One, two,"] * NUM_PROMPTS, "n": 2, "max_tokens": 1000}


async def num_running(http: httpx.AsyncClient) -> float:
    return await counted(http, "lorikeet_tenant_sequences_running")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_who_leaves_is_charged_for_what_was_made(live: LiveServer, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=live.url, timeout=120) as http:
        before = await counted(http, "lorikeet_tenant_tokens_total", kind="completion")
        body = LONG | {"ignore_eos": True, "stream": stream}
        asking = asyncio.create_task(http.post("/v1/completions", json=body))
        while await num_running(http) < 2 * NUM_PROMPTS:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)  # some tokens
        asking.cancel()
        await asyncio.wait([asking])
        while await num_running(http):
            await asyncio.sleep(0.05)
        charged = await counted(http, "lorikeet_tenant_tokens_total", kind="completion") - before
        assert 2 * NUM_PROMPTS * 2 <= charged < 2 * NUM_PROMPTS * 1000
        assert await counted(http, "lorikeet_requests_in_flight") == 0
        while await counted(http, "vllm:num_requests_running"):  # as the engine's next report says
            await asyncio.sleep(0.05)
