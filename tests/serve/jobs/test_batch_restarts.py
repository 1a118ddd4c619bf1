"""Batches whose server stops, is killed, loses them or has no disk space left."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from tests.batch_serving import BatchServer, ended, line, rows, submit
from tests.eventually import eventually


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
