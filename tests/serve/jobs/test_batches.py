"""A batch from its file to its results, by OpenAI's SDK against a server with a hand-written engine."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError

from adapters.store.store import AdapterStore
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.errors import DeadlineError, NotReadyError
from tests.batch_serving import BatchServer, ended, line, rows, submit, upload
from tests.eventually import eventually
from tests.serving import BASE_NAME, chat


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_batch_answers_every_line_once(server: BatchServer) -> None:
    names = [f"line-{number}" for number in range(100)]
    async with server.running(), server.client() as client:
        file_id = await upload(client, [line(name) for name in names])
        batch = await client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"who": "me"}
        )
        assert (batch.status, batch.metadata, batch.errors) == ("validating", {"who": "me"}, None)
        batch = await ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 100, "completed": 100, "failed": 0}
        assert batch.usage is not None
        assert batch.usage.total_tokens == 1000
        assert (batch.model, batch.error_file_id) == (BASE_NAME, None)
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        answers = await rows(client, batch.output_file_id)
    assert {name: answers[name]["response"]["body"]["text"] for name in names} == {name: name for name in names}
    assert sorted(server.engine.asked) == sorted(names)
    assert not list(server.folder.joinpath("batches").iterdir())


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("endpoint", "body"), [("/v1/completions", {"prompt": "Angina"}), ("/v1/responses", {"input": "Angina"})]
)
async def test_other_endpoints_work(server: BatchServer, endpoint: str, body: dict[str, Any]) -> None:
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("a", endpoint, **body)], endpoint))
        answers = await rows(client, batch.output_file_id)
    assert answers["a"]["response"]["body"]["object"] == endpoint.removeprefix("/v1/")


@pytest.mark.slow
@pytest.mark.anyio
async def test_lines_are_asked_behind_all_clients(server: BatchServer) -> None:
    async with server.running(), server.client() as client:
        await ended(client, await submit(client, [line("a")]))
    assert server.engine.bodies[0]["priority"] == BACKGROUND_PRIORITY
    assert server.engine.callers[0].source == "batch"
    assert server.serving.finished.requests[0].context.source == "batch"


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_line_that_is_refused_is_in_the_error_file(server: BatchServer) -> None:
    bad = line("bad", messages=[{"role": "user", "content": "a"}], max_tokens=10**9)
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("good"), bad]))
        errors = await rows(client, batch.error_file_id)
        answers = await rows(client, batch.output_file_id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.failed == 1
    assert list(answers) == ["good"]
    assert errors["bad"]["response"]["status_code"] == 400
    assert "max_tokens" in errors["bad"]["response"]["body"]["error"]["message"]
    assert errors["bad"]["error"] is None


@pytest.mark.anyio
async def test_a_bad_input_fails_with_its_lines(server: BatchServer) -> None:
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("a"), "{", line("a"), line("b", model="gpt-4")]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(fault.line, fault.code) for fault in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "model_not_found"),
    ]
    assert server.engine.asked == []


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_busy_server_is_asked_again(server: BatchServer) -> None:
    server.runner.context.asker._max_pause_s = 0.01
    server.engine.errors = {"a": [NotReadyError("starting")] * 5, "b": [DeadlineError("late")] * 3}
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("a"), line("b")]))
        errors = await rows(client, batch.error_file_id)
        assert list(await rows(client, batch.output_file_id)) == ["a"]
    assert errors["b"]["response"]["status_code"] == 504


@pytest.mark.anyio
async def test_a_cancelled_batch_keeps_its_answers(server: BatchServer) -> None:
    server.engine.held = {"b"}
    async with server.running(), server.client() as client:
        batch = await submit(client, [line("a"), line("b")])
        await eventually(lambda: server.services.batches.get(None, batch.id).num_completed == 1)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await ended(client, batch)
        answers, errors = await rows(client, batch.output_file_id), await rows(client, batch.error_file_id)
        with pytest.raises(BadRequestError, match="already ended"):
            await client.batches.cancel(batch.id)
    assert batch.status == "cancelled"
    assert (list(answers), list(errors)) == (["a"], ["b"])
    assert errors["b"]["error"]["code"] == "batch_cancelled"


@pytest.mark.anyio
async def test_what_has_expired_is_in_the_error_file(server: BatchServer) -> None:
    server.engine.held = {"b"}
    async with server.running(), server.client() as client:
        batch = await submit(client, [line("a"), line("b"), line("c")])
        await eventually(lambda: server.services.batches.get(None, batch.id).num_completed == 2)
        server.runner.context = replace(server.runner.context, clock=lambda: time.time() + 25 * 3600)
    async with server.running(), server.client() as client:
        batch = await ended(client, batch)
        answers, errors = await rows(client, batch.output_file_id), await rows(client, batch.error_file_id)
    assert batch.status == "expired"
    assert (sorted(answers), list(errors)) == (["a", "c"], ["b"])
    assert errors["b"]["error"]["code"] == "batch_expired"
    assert errors["b"]["response"] is None


@pytest.mark.slow
@pytest.mark.anyio
async def test_clients_find_places_and_batches_retreat(server: BatchServer) -> None:
    names = [f"line-{number}" for number in range(60)]
    server.engine.held = {*names, "Angina"}
    async with server.running(), server.client() as client, server.serving.client() as other:
        batch = await submit(client, [line(name) for name in names])
        await eventually(lambda: len(server.engine.asked) == 28)
        asking = asyncio.create_task(other.post("/v1/chat/completions", json=chat()))
        await eventually(lambda: "Angina" in server.engine.asked)
        server.engine.held -= set(names[:25])
        await eventually(lambda: server.runner.context.pacer.num_running <= 8)
        await asyncio.sleep(0.1)
        assert len(server.engine.asked) == 28 + 1 + 5
        server.engine.held = set()
        assert (await asking).status_code == 200
        assert (await ended(client, batch)).status == "completed"


@pytest.mark.slow
@pytest.mark.anyio
async def test_lists_go_on_after_a_batch(server: BatchServer) -> None:
    async with server.client() as client:
        made = [(await submit(client, [line(str(number))])).id for number in range(5)]
        found = [batch.id async for batch in client.batches.list(limit=2)]
    assert found == made[::-1]


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_line_that_is_refused_waits_for_no_room(server: BatchServer) -> None:
    """Else it would end all others first, of all tenants, and run alone."""
    server.engine.held = {"a"}
    question = [{"role": "user", "content": "b"}]
    async with server.running(), server.client() as client:
        batch = await submit(client, [line("a"), line("b", messages=question, n=10**9), line("c")])
        async with asyncio.timeout(10):
            while server.engine.asked != ["a", "c"]:
                await asyncio.sleep(0.01)
        server.engine.held = set()
        batch = await ended(client, batch)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_line_may_be_as_long_as_a_body(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    """Asked as it was written: with `\\u` for each letter it would be twice as long."""
    server = BatchServer(tmp_path, store, base_folder, max_body_bytes=20_000)
    question = [{"role": "user", "content": "木" * 6000}]
    async with server.running(), server.client() as client:
        written = json.dumps(line("a", messages=question), ensure_ascii=False)
        batch = await ended(client, await submit(client, [written]))
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 1
