"""A server that runs batches, with an engine that answers with the question, and OpenAI's client of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from openai.types import Batch

from adapters.store.store import AdapterStore
from serve.access.keys import KeyRing
from serve.engine.protocol import Answer, Endpoint
from serve.jobs.batch_runner import BatchRunner
from serve.records import Caller, RequestResult
from tests.fake_engine import FakeEngine
from tests.serving import BASE_NAME, Serving, make_serving

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ENDED = ("completed", "failed", "expired", "cancelled")


class LineEngine(FakeEngine):
    """Answers with the text of the question. One that is in `held` waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.held: set[str] = set()
        self.num_at_once = self.most_at_once = 0

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        text = str(body["messages"][-1]["content"] if "messages" in body else body.get("prompt") or body.get("input"))
        self.asked.append(text)
        self.bodies.append(body)
        self.callers.append(caller)
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            await asyncio.sleep(0)
            while text in self.held:
                await asyncio.sleep(0.01)
        finally:
            self.num_at_once -= 1
        if self.errors.get(text):
            raise self.errors[text].pop(0)
        return Answer({"object": endpoint, "model": body["model"], "usage": USAGE, "text": text})


class BatchServer:
    """A server that runs batches, started and stopped as its process would be."""

    def __init__(self, tmp_path: Path, store: AdapterStore, base_folder: Path, **changes: Any) -> None:
        self.engine = LineEngine()
        self.keys_file = tmp_path / "keys.json"
        self.folder = tmp_path / "jobs"
        keys = KeyRing(self.keys_file, check_interval_s=0) if self.keys_file.exists() else KeyRing(None)
        self.serving: Serving = make_serving(
            store, base_folder, engine=self.engine, jobs_folder=self.folder, keys=keys, **changes
        )
        assert self.serving.jobs is not None
        self.services = self.serving.jobs
        loops = (getattr(loop, "__self__", None) for loop in self.serving.parts.background)
        self.runner = next(owner for owner in loops if isinstance(owner, BatchRunner))
        self.runner.context = replace(self.runner.context, heartbeat_s=0.02)

    def client(self, token: str = "none") -> AsyncOpenAI:
        http_client: Any = httpx.AsyncClient(transport=httpx.ASGITransport(self.serving.app))
        return AsyncOpenAI(base_url="http://localhost/v1", api_key=token, http_client=http_client, max_retries=0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    given = body or {"messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": BASE_NAME} | given}


async def upload(client: AsyncOpenAI, lines: Sequence[Any], purpose: Any = "batch") -> str:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return (await client.files.create(file=("lines.jsonl", content.encode()), purpose=purpose)).id


async def submit(client: AsyncOpenAI, lines: Sequence[Any], endpoint: Any = "/v1/chat/completions") -> Batch:
    file_id = await upload(client, lines)
    return await client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")


async def ended(client: AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(20):
        while (batch := await client.batches.retrieve(batch.id)).status not in ENDED:
            await asyncio.sleep(0.02)
    return batch


async def rows(client: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """Rows of a result file by `custom_id`; each may be there once."""
    assert file_id is not None
    found = [json.loads(row) for row in (await client.files.content(file_id)).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}
