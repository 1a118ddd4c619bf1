"""Who may create and read a batch, and which inputs, models and numbers are refused."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, RateLimitError

from adapters.bases import read_base
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, create_key, revoke_key
from tests.batch_serving import BatchServer, ended, line, submit, upload
from tests.eventually import eventually
from tests.peft_folders import draft_for, write_peft_folder


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
