"""Who may see what: keys with and without the right to train, and tenants that are strangers to each other."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.store.store import AdapterStore
from serve.access.keys import KeyRing, list_keys, revoke_key
from serve.jobs.revoked import RevokedKeys
from tests.jobs_serving import WORKER, FakeWorker, chat_rows, make_jobs_serving, running_server, sdk_of, token_of
from tests.serving import BASE_NAME, Serving, chat, make_serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def acme(tmp_path: Path) -> str:
    return token_of(tmp_path, "acme")


@pytest.fixture
def rival(tmp_path: Path, acme: str) -> str:
    return token_of(tmp_path, "rival")


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path, acme: str, rival: str) -> Serving:
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    serving.publish("medical")
    return serving


async def upload(client: httpx.AsyncClient) -> str:
    form = {"file": ("a.jsonl", chat_rows())}
    return str((await client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)).json()["id"])


async def start(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    wanted = {"model": BASE_NAME, "training_file": await upload(client)} | body
    response = await client.post("/v1/fine_tuning/jobs", json=wanted)
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.slow
async def test_a_stranger_sees_nothing_of_a_tenant(serving: Serving, acme: str, rival: str) -> None:
    async with serving.client(acme) as owner, serving.client(rival) as stranger:
        job = await start(owner, suffix="trees")
        asked = [
            ("GET", f"/v1/files/{job['training_file']}"),
            ("GET", f"/v1/files/{job['training_file']}/content"),
            ("DELETE", f"/v1/files/{job['training_file']}"),
            ("GET", f"/v1/fine_tuning/jobs/{job['id']}"),
            ("GET", f"/v1/fine_tuning/jobs/{job['id']}/events"),
            ("GET", f"/v1/fine_tuning/jobs/{job['id']}/events?stream=true"),
            ("GET", f"/v1/fine_tuning/jobs/{job['id']}/checkpoints"),
            ("POST", f"/v1/fine_tuning/jobs/{job['id']}/cancel"),
        ]
        for method, path in asked:
            known, unknown = job["id"], "ftjob-" + "0" * 24
            file, no_file = job["training_file"], "file-" + "0" * 24
            theirs = await stranger.request(method, path)
            nobodys = await stranger.request(method, path.replace(known, unknown).replace(file, no_file))
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(known, unknown).replace(file, no_file) == nobodys.text
        lists = [(await stranger.get(path)).json()["data"] for path in ("/v1/files", "/v1/fine_tuning/jobs")]
        used = await stranger.post(
            "/v1/fine_tuning/jobs", json={"model": BASE_NAME, "training_file": job["training_file"]}
        )
        mine = (await owner.get("/v1/files")).json()["data"]
    assert lists == [[], []]
    assert (used.status_code, len(mine)) == (404, 1)


async def test_a_model_of_a_job_answers_its_tenant_only(serving: Serving, acme: str, rival: str) -> None:
    async with serving.client(acme) as owner, serving.client(rival) as stranger:
        job = await start(owner, suffix="trees")
        done = FakeWorker(serving).train(job["id"], promote=True)
        name = done.fine_tuned_model or ""
        for model in (name, "acme-trees", "acme-trees@1", f"{name}:ckpt-step-2"):
            mine, theirs = [await c.post("/v1/chat/completions", json=chat(model)) for c in (owner, stranger)]
            assert (mine.status_code, theirs.status_code) == (200, 404)
            assert mine.json()["model"] == "acme-trees@1"
            assert theirs.json()["error"]["code"] == "model_not_found"
        listed = [{card["id"] for card in (await c.get("/v1/models")).json()["data"]} for c in (owner, stranger)]
        cards = [(await c.get(f"/v1/models/{name}")).status_code for c in (owner, stranger)]
        deleted = await stranger.delete(f"/v1/models/{name}")
        started = await start(stranger, model=name)
    assert done.adapter == "acme-trees"
    assert listed[0] - listed[1] == {name, f"{name}:ckpt-step-2", "acme-trees", "acme-trees@1"}
    assert {BASE_NAME, "medical"} < listed[1]
    assert (cards, deleted.status_code) == ([200, 404], 404)
    assert started["error"]["code"] == "model_not_available"


@pytest.mark.slow
async def test_a_tenants_own_model_needs_no_pattern_of_its_key(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    token = token_of(tmp_path, "acme", adapters=(BASE_NAME,))
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client(token) as client:
        job = await start(client, suffix="trees")
        name = FakeWorker(serving).train(job["id"]).fine_tuned_model or ""
        answer = await client.post("/v1/chat/completions", json=chat(name))
    assert answer.status_code == 200


@pytest.mark.slow
async def test_a_base_that_the_key_does_not_allow_is_not_trained(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    token = token_of(tmp_path, "acme", adapters=("med*",))
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client(token) as client:
        answer = await start(client)
    assert answer["error"]["code"] == "model_not_available"


@pytest.mark.slow
async def test_two_tenants_may_have_the_same_suffix(serving: Serving, acme: str, rival: str) -> None:
    async with serving.client(acme) as one, serving.client(rival) as other:
        first, second = await start(one, suffix="trees"), await start(other, suffix="trees")
    assert serving.jobs is not None
    adapters = [serving.jobs.queue.get(None, job["id"]).adapter for job in (first, second)]
    assert adapters == ["acme-trees", "rival-trees"]


async def test_a_suffix_that_meets_an_adapter_of_the_operator_is_refused(serving: Serving, acme: str) -> None:
    serving.publish("acme-legal")
    async with serving.client(acme) as client:
        answer = await start(client, suffix="legal")
    assert (answer["error"]["code"], answer["error"]["param"]) == ("invalid_suffix", "suffix")


@pytest.mark.slow
async def test_names_that_fold_into_one_stay_with_the_first(
    tmp_path: Path, store: AdapterStore, base_folder: Path, acme: str
) -> None:
    other = token_of(tmp_path, "acme-x")
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client(acme) as one, serving.client(other) as two:
        first, second = await start(one, suffix="x-y"), await start(two, suffix="y")
    assert first["status"] == "validating_files"
    assert second["error"]["code"] == "invalid_suffix"


async def test_a_key_without_the_right_to_train_gets_a_403(
    tmp_path: Path, serving: Serving, store: AdapterStore, base_folder: Path
) -> None:
    plain = token_of(tmp_path, "acme", may_train=False, is_admin=True)
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client(plain) as client:
        answers = [await client.get("/v1/files"), await client.post("/v1/fine_tuning/jobs", json={})]
        completed = await client.post("/v1/chat/completions", json=chat())
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json()["error"]["code"] == "insufficient_permissions"
    assert "lorikeet keys create TENANT --train" in answers[0].json()["error"]["message"]
    assert completed.status_code == 200


@pytest.mark.slow
async def test_requests_count_for_the_keys_limits(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    token = token_of(tmp_path, "acme", requests_per_minute=2)
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client(token) as client:
        statuses = [(await client.get("/v1/files")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/files"), ("POST", "/v1/files"), ("POST", "/v1/fine_tuning/jobs")]
)
async def test_a_server_without_jobs_has_no_such_routes(
    store: AdapterStore, base_folder: Path, method: str, path: str
) -> None:
    serving = make_serving(store, base_folder)
    async with serving.client() as client:
        response = await client.request(method, path)
    assert response.status_code == 404


async def test_every_change_is_in_the_audit_log(serving: Serving, tmp_path: Path, acme: str) -> None:
    async with serving.client(acme) as client:
        job = await start(client, suffix="trees")
        name = FakeWorker(serving).train(job["id"]).fine_tuned_model or ""
        other = await start(client)
        await client.post(f"/v1/fine_tuning/jobs/{other['id']}/cancel")
        await client.delete(f"/v1/models/{name}")
        await client.delete(f"/v1/files/{job['training_file']}")
    path = tmp_path / "jobs" / "audit.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["action"], entry["subject"]) for entry in entries] == [
        ("file.created", job["training_file"]),
        ("job.created", job["id"]),
        ("file.created", other["training_file"]),
        ("job.created", other["id"]),
        ("job.cancel", other["id"]),
        ("model.deleted", name),
        ("file.deleted", job["training_file"]),
    ]
    assert {entry["tenant"] for entry in entries} == {"acme"}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
async def test_a_revoked_key_ends_its_streams_of_events(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    token = token_of(tmp_path, "acme")
    keys = KeyRing(tmp_path / "keys.json", check_interval_s=0)
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=keys)
    async with sdk_of(serving, token) as sdk, serving.client(token) as client:
        job = await start(client)
        events = sdk.fine_tuning.jobs.with_streaming_response.list_events(job["id"], extra_query={"stream": True})
        async with asyncio.timeout(10), events as response:
            lines = response.iter_lines()
            first = await anext(lines)
            revoke_key(tmp_path / "keys.json", list_keys(tmp_path / "keys.json")[0].id, now=datetime.now(UTC))
            rest = [line async for line in lines if line]
    assert "Created fine-tuning job" in first
    assert "invalid_api_key" in rest[-2]


async def test_a_tenant_has_so_many_streams_of_events(serving: Serving, acme: str, rival: str) -> None:
    async with running_server(serving) as url, AsyncExitStack() as opened:

        async def stream(token: str) -> int:
            client = await opened.enter_async_context(serving.client(token))
            job = await start(client)
            http = await opened.enter_async_context(httpx.AsyncClient(headers=client.headers))
            asked = http.stream("GET", f"{url}/fine_tuning/jobs/{job['id']}/events?stream=true")
            response = await opened.enter_async_context(asked)
            lines.append(response.aiter_lines())  # one that is forgotten would close its stream
            await anext(lines[-1])
            return response.status_code

        lines: list[AsyncIterator[str]] = []
        statuses = [await stream(acme) for _ in range(9)]
        others = await stream(rival)
    assert (statuses, others) == ([200] * 8 + [429], 200)


async def test_a_revoked_key_ends_its_jobs(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    tokens, file = [token_of(tmp_path, tenant) for tenant in ("acme", "rival")], tmp_path / "keys.json"
    serving = make_jobs_serving(tmp_path, store, base_folder, keys=KeyRing(file, check_interval_s=0))
    loops = (getattr(loop, "__self__", None) for loop in serving.parts.background)
    revoked = next(owner for owner in loops if isinstance(owner, RevokedKeys))
    worker = FakeWorker(serving)
    async with serving.client(tokens[0]) as acme, serving.client(tokens[1]) as rival:
        running, waiting, others = await start(acme), await start(acme), await start(rival)
        worker.begin(running["id"])
        await revoked.check()
        assert {job.status for job in worker.queue.list("acme").items} == {"running", "validating_files"}
        key_id = next(key.id for key in list_keys(file) if key.tenant == "acme")
        revoke_key(file, key_id, now=datetime.now(UTC))
        await revoked.check()
    assert worker.queue.heartbeat(running["id"], WORKER) == "cancel"
    worker.queue.finish(running["id"], WORKER, "cancelled")
    ended = [worker.queue.get("acme", job["id"]) for job in (running, waiting)]
    assert [(job.status, job.error and job.error.code) for job in ended] == [("cancelled", "invalid_api_key")] * 2
    assert worker.queue.get("rival", others["id"]).status == "validating_files"
    audited = [json.loads(line) for line in (tmp_path / "jobs" / "audit.jsonl").read_text().splitlines()]
    cancelled = [entry["subject"] for entry in audited if entry["action"] == "job.cancel" and entry["key"] == key_id]
    assert sorted(cancelled) == sorted(job["id"] for job in (running, waiting))


@pytest.mark.slow
async def test_jobs_of_a_server_without_keys_outlive_its_first_key(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder)
    async with serving.client() as client:
        job = await start(client)
    assert serving.jobs is not None
    await RevokedKeys(serving.jobs, lambda _: None).check()
    assert serving.jobs.queue.get(None, job["id"]).status == "validating_files"
