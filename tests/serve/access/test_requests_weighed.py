"""Over HTTP: a request takes a place for each of its sequences, and no tenant takes them all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.access.keys import KeyGrant, KeyRing, create_key, revoke_key
from serve.engine.protocol import Answer, Endpoint
from serve.errors import UnauthorizedError
from serve.limits.limits import num_sequences, tokens_asked
from tests.eventually import eventually
from tests.serving import BASE_NAME, Serving, make_serving

pytestmark = pytest.mark.anyio


class SlowEngine:
    """Answers when it is told to, and counts the sequences that it has."""

    def __init__(self, serving: Serving) -> None:
        self.may_answer = asyncio.Event()
        self.num_sequences = self.most_sequences = 0
        serving.engine.answer = self.answer  # type: ignore[method-assign, assignment]  # the fake is made to be slow

    async def answer(self, endpoint: Endpoint, body: dict[str, Any], *_: object) -> Answer:
        num = num_sequences(body, endpoint)
        self.num_sequences += num
        self.most_sequences = max(self.most_sequences, self.num_sequences)
        try:
            await self.may_answer.wait()
        finally:
            self.num_sequences -= num
        return Answer({"model": body["model"]})


def batch(num_prompts: int, n: int) -> dict[str, Any]:
    return {"model": BASE_NAME, "prompt": ["Hi"] * num_prompts, "n": n, "max_tokens": 16}


@asynccontextmanager
async def flooded(serving: Serving, engine: SlowEngine, token: str | None, num: int, body: Any) -> AsyncIterator[Any]:
    """So many requests at a time; gives their tasks, and lets them end afterwards."""
    async with serving.client(token) as client:
        tasks = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(num)]
        for _ in range(100):
            await asyncio.sleep(0)
        yield tasks
        engine.may_answer.set()
        await asyncio.gather(*tasks)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "keys.json"
    return {name: create_key(path, KeyGrant(tenant=name), now=datetime.now(UTC)).token for name in ("greedy", "small")}


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path, tmp_path: Path, tokens: dict[str, str]) -> Serving:
    return make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"), max_wait_s=1)


@pytest.mark.slow
async def test_a_request_whose_key_is_revoked_is_answered_to_its_end(
    serving: Serving, tokens: dict[str, str], tmp_path: Path
) -> None:
    engine, path = SlowEngine(serving), tmp_path / "keys.json"
    ring = serving.parts.keys
    key = ring.authenticate(f"Bearer {tokens['small']}")
    async with flooded(serving, engine, tokens["small"], 1, batch(1, 1)) as tasks, serving.client() as client:
        revoke_key(path, key.id, now=datetime.now(UTC))
        await eventually(lambda: is_refused(ring, tokens["small"]))
        header = {"authorization": f"Bearer {tokens['small']}"}
        late = await client.post("/v1/completions", json=batch(1, 1), headers=header)
        assert not tasks[0].done()
    assert (late.status_code, tasks[0].result().status_code) == (401, 200)


def is_refused(ring: KeyRing, token: str) -> bool:
    with suppress(UnauthorizedError):
        ring.authenticate(f"Bearer {token}")
        return False
    return True


async def test_the_request_of_the_more_urgent_key_runs_first(
    store: AdapterStore, base_folder: Path, tmp_path: Path
) -> None:
    """One place; who comes first holds it, then priority decides and not who came earlier. The engine is told, too."""
    path, now = tmp_path / "keys.json", datetime.now(UTC)
    priorities = {"first": 0, "later": 5, "urgent": -5}
    token = {name: create_key(path, KeyGrant(tenant=name, priority=p), now=now).token for name, p in priorities.items()}
    serving = make_serving(store, base_folder, keys=KeyRing(path), max_num_seqs=1)
    engine, asked = SlowEngine(serving), []

    async def answer(endpoint: Endpoint, body: dict[str, Any], *_: object) -> Answer:
        asked.append(body["priority"])
        return await engine.answer(endpoint, body)

    serving.engine.answer = answer  # type: ignore[method-assign, assignment]
    async with AsyncExitStack() as stack:
        for name in priorities:
            await stack.enter_async_context(flooded(serving, engine, token[name], 1, batch(1, 1)))
        assert asked == [0]
    assert asked == [0, -5, 5]


async def test_a_flood_of_large_requests_is_never_more_than_a_batch(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder)
    engine = SlowEngine(serving)
    async with flooded(serving, engine, None, 8, batch(16, 2)) as tasks:
        assert engine.num_sequences == 32
    assert {task.result().status_code for task in tasks} == {200}
    assert engine.most_sequences == 32


async def test_a_small_tenant_runs_while_a_greedy_one_floods(serving: Serving, tokens: dict[str, str]) -> None:
    engine = SlowEngine(serving)
    async with flooded(serving, engine, tokens["greedy"], 20, batch(14, 2)):
        assert engine.num_sequences == 28
        async with flooded(serving, engine, tokens["small"], 1, batch(2, 2)):
            assert engine.num_sequences == 32
            running = serving.metrics.registry.get_sample_value
            assert running("lorikeet_tenant_sequences_running", {"tenant": "greedy"}) == 28
            assert running("lorikeet_tenant_sequences_running", {"tenant": "small"}) == 4


async def test_more_than_one_tenant_may_have_is_refused_with_the_number(
    serving: Serving, tokens: dict[str, str]
) -> None:
    async with serving.client(tokens["greedy"]) as client:
        response = await client.post("/v1/completions", json=batch(16, 2))
    assert response.status_code == 400
    message = "`n` makes 32 answers of 16 prompts; this server accepts at most 28."
    assert (response.json()["error"]["message"], response.json()["error"]["param"]) == (message, "n")


async def test_a_server_of_few_places_takes_no_more_answers(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_num_seqs=2)
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json={"model": BASE_NAME, "messages": [], "n": 3})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


@pytest.mark.slow
async def test_whoever_waits_in_vain_is_told_what_its_tenant_holds(serving: Serving, tokens: dict[str, str]) -> None:
    engine = SlowEngine(serving)
    async with flooded(serving, engine, tokens["greedy"], 1, batch(14, 2)), serving.client(tokens["greedy"]) as client:
        response = await client.post("/v1/completions", json=batch(1, 1))
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "other requests of this tenant held 28 of the 32 sequences" in response.json()["error"]["message"]


async def test_a_client_that_leaves_gives_all_its_places_back(serving: Serving, tokens: dict[str, str]) -> None:
    engine = SlowEngine(serving)
    async with flooded(serving, engine, tokens["greedy"], 1, batch(14, 2)) as tasks:
        tasks[0].cancel()
        await asyncio.wait(tasks)
        tasks.clear()
        assert serving.parts.completions._gate.admission.running_by_tenant() == {}


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        ("completions", {"prompt": "Hi"}, 1),
        ("completions", {"prompt": ["Hi"] * 3, "n": 4}, 12),
        ("completions", {"prompt": [[1, 2], [3]], "n": "2"}, 4),
        ("completions", {"prompt": [1, 2, 3], "best_of": 5}, 5),
        ("completions", {"prompt": [], "n": 0}, 1),
        ("chat/completions", {"messages": [], "n": 3}, 3),
        ("chat/completions", {"prompt": ["Hi"] * 3, "n": float("nan")}, 1),
        ("responses", {"input": "Hi", "n": 3}, 1),
    ],
)
def test_sequences_are_prompts_times_answers(endpoint: Endpoint, body: dict[str, Any], expected: int) -> None:
    assert num_sequences(body, endpoint) == expected


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        ("completions", {"prompt": "x" * 40}, 10 + 16),
        ("completions", {"prompt": "x" * 40, "max_tokens": None}, 10 + 512),
        ("chat/completions", {"messages": [], "n": 3}, 3 * 512),
        ("chat/completions", {"messages": [], "max_completion_tokens": 7, "n": 2}, 14),
        ("responses", {"input": "x" * 8, "max_output_tokens": 1e9}, 2 + 2048),
        ("chat/completions", {"messages": [], "max_tokens": float("inf")}, 512),
    ],
)
def test_tokens_asked_for_are_of_the_prompt_and_of_each_answer(
    endpoint: Endpoint, body: dict[str, Any], expected: int
) -> None:
    assert tokens_asked(body, endpoint, 512, 2048) == expected


def test_a_request_of_a_few_places_is_the_default() -> None:
    assert ServeConfig.model_validate({"base": "tiny", "max_num_seqs": 4}).limits.max_sequences == 4


def test_a_request_larger_than_a_batch_cannot_be_allowed() -> None:
    with pytest.raises(ValueError, match="max_sequences 32 must be at most max_num_seqs 4"):
        ServeConfig.model_validate({"base": "tiny", "max_num_seqs": 4, "limits": {"max_sequences": 32}})
