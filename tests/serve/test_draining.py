"""A server that stops ends its streams of events at once."""

import asyncio
from pathlib import Path

import httpx
import pytest
import uvicorn

from adapters.store.store import AdapterStore
from serve.draining import DrainingServer
from tests.jobs_serving import chat_rows, make_jobs_serving
from tests.serving import BASE_NAME

DRAIN_TIMEOUT_S = 600


@pytest.mark.anyio
async def test_a_stream_of_events_does_not_hold_a_stopping_server(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder)
    config = uvicorn.Config(
        serving.app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=DRAIN_TIMEOUT_S
    )
    server = DrainingServer(config, serving.parts.begin_drain)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    async with httpx.AsyncClient(timeout=60) as client, asyncio.timeout(60):
        form = {"file": ("a.jsonl", chat_rows())}
        file = (await client.post(f"{url}/files", data={"purpose": "fine-tune"}, files=form)).json()["id"]
        wanted = {"model": BASE_NAME, "training_file": file}
        job = (await client.post(f"{url}/fine_tuning/jobs", json=wanted)).json()["id"]
        async with client.stream("GET", f"{url}/fine_tuning/jobs/{job}/events?stream=true") as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            server.should_exit = True
            rest = [line async for line in lines if line]
        await running
    assert "Created fine-tuning job" in first
    assert rest[-1] == ": the server stops; connect again"
    assert "data: [DONE]" not in rest
