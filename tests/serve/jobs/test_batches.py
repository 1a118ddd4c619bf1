"""A batch from its file to its results, by OpenAI's SDK against a server with a hand-written engine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, RateLimitError
from openai.types import Batch

from adapters.bases import read_base
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key, revoke_key
from serve.engine.protocol import BACKGROUND_PRIORITY, Answer, Endpoint
from serve.errors import DeadlineError, NotReadyError
from serve.jobs.batch_runner import BatchRunner
from serve.records import Caller, RequestResult
from tests.eventually import eventually
from tests.fake_engine import FakeEngine
from tests.peft_folders import draft_for, write_peft_folder
from tests.serving import BASE_NAME, Serving, chat, make_serving

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


@pytest.fixture
def server(tmp_path: Path, store: AdapterStore, base_folder: Path) -> BatchServer:
    return BatchServer(tmp_path, store, base_folder)


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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("endpoint", "body"), [("/v1/completions", {"prompt": "Angina"}), ("/v1/responses", {"input": "Angina"})]
)
async def test_other_endpoints_work(server: BatchServer, endpoint: str, body: dict[str, Any]) -> None:
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("a", endpoint, **body)], endpoint))
        answers = await rows(client, batch.output_file_id)
    assert answers["a"]["response"]["body"]["object"] == endpoint.removeprefix("/v1/")


@pytest.mark.anyio
async def test_lines_are_asked_behind_all_clients(server: BatchServer) -> None:
    async with server.running(), server.client() as client:
        await ended(client, await submit(client, [line("a")]))
    assert server.engine.bodies[0]["priority"] == BACKGROUND_PRIORITY
    assert server.engine.callers[0].source == "batch"
    assert server.serving.finished.requests[0].context.source == "batch"


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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param({"completion_window": "1h"}, "completion_window", id="another window"),
        pytest.param({"endpoint": "/v1/embeddings"}, "endpoint", id="an endpoint that is not here"),
        pytest.param({"metadata": {"a": "x" * 513}}, "metadata", id="long metadata"),
        pytest.param({"extra_body": {"color": "red"}}, "color", id="an unknown field"),
    ],
)
async def test_what_a_batch_cannot_be_is_refused(server: BatchServer, changes: Any, match: str) -> None:
    async with server.client() as client:
        asked: Any = {
            "input_file_id": await upload(client, [line("a")]),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        with pytest.raises(BadRequestError, match=match):
            await client.batches.create(**asked | changes)


@pytest.mark.anyio
async def test_the_input_must_be_a_batch_file(server: BatchServer) -> None:
    async with server.client() as client:
        file_id = await upload(client, ["Some text"], "user_data")
        with pytest.raises(BadRequestError, match="purpose"):
            await client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(NotFoundError):
            await client.batches.create(
                input_file_id="file-0", endpoint="/v1/chat/completions", completion_window="24h"
            )


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


@pytest.mark.anyio
async def test_a_new_server_asks_only_what_has_no_answer(
    server: BatchServer, tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    names = [f"line-{number}" for number in range(20)]
    server.engine.held = set(names[10:])
    async with server.running(), server.client() as client:
        batch = await submit(client, [line(name) for name in names])
        await eventually(lambda: server.services.batches.get(None, batch.id).num_completed == 10)
    output = server.folder / "batches" / f"{batch.id}.output.jsonl"
    with output.open("ab") as file:  # as of a server that was killed at a write
        file.write(b'{"id": "batch_req_half", "custom_id": "line-1')
    again = BatchServer(tmp_path, store, base_folder)
    async with again.running(), again.client() as client:
        batch = await ended(client, batch)
        answers = await rows(client, batch.output_file_id)
    assert batch.status == "completed"
    assert sorted(answers) == sorted(names)
    assert sorted(again.engine.asked) == sorted(names[10:])


@pytest.mark.anyio
async def test_a_server_killed_at_the_end_leaves_no_second_file(
    server: BatchServer, tmp_path: Path, store: AdapterStore, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("killed before the batch had ended")

    with monkeypatch.context() as patch:
        patch.setattr("adapters.jobs.batches.BatchQueue.finish", killed)
        async with server.running(), server.client() as client:
            batch = await submit(client, [line("a"), line("b")])
            await eventually(lambda: len(server.services.files.list(None, purpose="batch_output").items) == 1)
            await eventually(lambda: server.services.batches.get(None, batch.id).worker is None)
    again = BatchServer(tmp_path, store, base_folder)
    async with again.running(), again.client() as client:
        batch = await ended(client, batch)
        found = again.services.files.list(None, purpose="batch_output").items
        assert list(await rows(client, batch.output_file_id)) == ["a", "b"]
    assert [file.id for file in found] == [batch.output_file_id]
    assert again.engine.asked == []


@pytest.mark.anyio
async def test_a_server_that_lost_a_batch_writes_nothing_more(server: BatchServer) -> None:
    server.engine.held = {"a", "b"}
    async with server.running(), server.client() as client:
        batch = await submit(client, [line("a"), line("b")])
        await eventually(lambda: len(server.engine.asked) == 2)
        server.services.batches.release_lost(stale_after_s=-1)
        assert server.services.batches.claim("another server") is not None
        server.engine.held = set()
        await eventually(lambda: server.runner.context.pacer.num_running == 0)
        await asyncio.sleep(0.1)
    assert not (server.folder / "batches" / f"{batch.id}.output.jsonl").exists()
    assert server.services.batches.get(None, batch.id).worker == "another server"


@pytest.mark.anyio
async def test_results_of_ended_batches_are_removed(server: BatchServer) -> None:
    folder = server.folder / "batches"
    folder.mkdir()
    (folder / "batch_0.output.jsonl").write_text("{}")
    async with server.running():
        await eventually(lambda: not list(folder.iterdir()))


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


@pytest.mark.anyio
async def test_strangers_see_no_batch(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    now = datetime.now(UTC)
    tokens = [create_key(tmp_path / "keys.json", KeyGrant(tenant=name, may_train=True), now=now).token for name in "ab"]
    server = BatchServer(tmp_path, store, base_folder)
    async with server.client(tokens[0]) as mine, server.client(tokens[1]) as other:
        batch = await submit(mine, [line("a")])
        with pytest.raises(NotFoundError, match=batch.id):
            await other.batches.retrieve(batch.id)
        with pytest.raises(NotFoundError, match=batch.id):
            await other.batches.cancel(batch.id)
        with pytest.raises(NotFoundError):
            await other.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert (await other.batches.list()).data == []
        assert [each.id for each in (await mine.batches.list()).data] == [batch.id]


@pytest.mark.anyio
async def test_a_batch_may_ask_what_its_key_may(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    grant = KeyGrant(tenant="acme", adapters=("medical",), may_train=True, requests_per_minute=4)
    key = create_key(tmp_path / "keys.json", grant, now=datetime.now(UTC))
    server = BatchServer(tmp_path, store, base_folder)
    server.serving.publish("medical")
    server.serving.publish("legal")

    def asking(model: str, number: int) -> dict[str, Any]:
        return line(f"{model}-{number}", model=model, messages=[{"role": "user", "content": "a"}])

    async with server.running(), server.client(key.token) as client:
        batch = await submit(client, [asking("medical", number) for number in range(20)])
        refused = await submit(client, [asking("legal", 0)])
        await eventually(lambda: server.services.batches.get("acme", refused.id).has_ended)
        assert server.services.batches.get("acme", batch.id).num_completed == 20  # its own rate limit does not count
        with pytest.raises(RateLimitError):
            await client.batches.retrieve(batch.id)
    assert server.services.batches.get("acme", refused.id).errors[0].code == "model_not_found"


@pytest.mark.anyio
async def test_a_revoked_key_ends_its_batch(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    key = create_key(tmp_path / "keys.json", KeyGrant(tenant="acme", may_train=True), now=datetime.now(UTC))
    server = BatchServer(tmp_path, store, base_folder)
    server.engine.held = {"b"}
    async with server.running(), server.client(key.token) as client:
        batch = await submit(client, [line("a"), line("b")])
        await eventually(lambda: server.services.batches.get(None, batch.id).num_completed == 1)
        revoke_key(tmp_path / "keys.json", key.record.id, now=datetime.now(UTC))
        await eventually(lambda: server.services.batches.get("acme", batch.id).has_ended)
    found = server.services.batches.get("acme", batch.id)
    assert (found.status, found.errors[0].code, found.num_completed) == ("cancelled", "invalid_api_key", 1)


@pytest.mark.anyio
async def test_a_tenant_has_a_bound_of_unfinished_batches(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    server = BatchServer(tmp_path, store, base_folder, jobs={"max_jobs_per_tenant": 1})
    async with server.client() as client:
        await submit(client, [line("a")])
        with pytest.raises(RateLimitError, match="1 unfinished batches"):
            await submit(client, [line("a")])


@pytest.mark.anyio
async def test_lists_go_on_after_a_batch(server: BatchServer) -> None:
    async with server.client() as client:
        made = [(await submit(client, [line(str(number))])).id for number in range(5)]
        found = [batch.id async for batch in client.batches.list(limit=2)]
    assert found == made[::-1]


@pytest.mark.anyio
async def test_a_full_disk_fails_the_batch_with_its_reason(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(results: Any, answers: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve.jobs.batch_results.BatchResults.write", full)
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, [line("a")]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.output_file_id) == ("disk_full", None)
    assert batch.errors.data[0].message == "The server's disk is full."


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


@pytest.mark.anyio
async def test_a_deleted_input_is_read_to_its_end(server: BatchServer) -> None:
    server.engine.held = {"a"}
    async with server.running(), server.client() as client:
        batch = await submit(client, [line("a"), *[line(f"line-{number}") for number in range(50)]])
        await client.files.delete(batch.input_file_id)
        server.engine.held = set()
        batch = await ended(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 51


@pytest.mark.anyio
async def test_a_line_for_another_base_fails_the_batch(server: BatchServer, tmp_path: Path) -> None:
    other = read_base(server.serving.base_folder).ref.model_copy(update={"name": "other", "digest": "0" * 64})
    folder = write_peft_folder(tmp_path / "legal")
    version = server.serving.store.publish(folder, draft_for(folder, "legal", base=other)).version
    server.serving.store.promote("legal", version)
    server.serving.publish("medical")
    lines = [line(name, model=name, messages=[]) for name in ("medical", "legal")]
    async with server.running(), server.client() as client:
        batch = await ended(client, await submit(client, lines))
    assert (batch.status, server.engine.asked) == ("failed", [])
    assert batch.errors is not None
    assert [(fault.line, fault.code) for fault in batch.errors.data or ()] == [(2, "model_not_found")]


@pytest.mark.anyio
async def test_a_batch_waits_for_a_server_of_its_base(server: BatchServer) -> None:
    async with server.client() as client:
        batch = await submit(client, [line("a")])
        own = server.runner.context
        server.runner.context = replace(own, base="other")
        async with server.running():
            await asyncio.sleep(0.1)
        assert server.services.batches.get(None, batch.id).status == "validating"
        server.runner.context = own
        async with server.running():
            assert (await ended(client, batch)).status == "completed"
