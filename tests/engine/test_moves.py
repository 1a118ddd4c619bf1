"""Canary splits and many moves on the real engine: every answer is by a version that was current for it."""

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from scipy.stats import binom

from tests.live_server import ANSWERS, LiveServer, chat, client, counted, once_idle, publish_copy

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

NAME = "colours-moves"
FIRST, SECOND = f"{NAME}@1", f"{NAME}@2"
USERS = [f"user-{number}" for number in range(80)]
NUM_MOVES = 60
NUM_CLIENTS = 6


@dataclass(frozen=True)
class Asked:
    """One answer. The server chose the version between `sent_s` and `begun_s`, when its headers came."""

    sent_s: float
    begun_s: float
    ended_s: float
    version: str
    models: frozenset[str]
    text: str


@dataclass(frozen=True)
class Move:
    """A call that made a version current: at some time between `called_s` and `returned_s`."""

    version: str
    called_s: float
    returned_s: float


@pytest.fixture(scope="module")
def answers(live: LiveServer) -> dict[str, str]:
    """Two versions of one adapter, which answer the same question differently, and what they answer."""
    for domain in ANSWERS:
        publish_copy(live.store, domain, NAME)
    return dict(zip((FIRST, SECOND), ANSWERS.values(), strict=True))


async def ask(http: httpx.AsyncClient, has_begun: asyncio.Event | None = None, **more: Any) -> Asked:
    """A streamed answer, whole; tells when it has begun."""
    sent_s = time.monotonic()
    async with http.stream("POST", "/v1/chat/completions", json=chat(NAME, stream=True) | more) as response:
        begun_s = time.monotonic()
        assert response.status_code == 200, await response.aread()
        if has_begun:
            has_begun.set()
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return Asked(
        sent_s,
        begun_s,
        time.monotonic(),
        response.headers["x-lorikeet-adapter"],
        frozenset(chunk["model"] for chunk in chunks),
        "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]),
    )


def mislabelled(asked: Sequence[Asked], answers: dict[str, str]) -> list[Asked]:
    """Answers whose header, model or text is not of one and the same version."""
    return [a for a in asked if a.models != {a.version} or a.text != answers[a.version]]


async def set_aliases(http: httpx.AsyncClient, **wanted: Any) -> None:
    (await http.post(f"/admin/aliases/{NAME}", json=wanted)).raise_for_status()


async def test_a_canary_gets_its_share_of_users_and_each_user_stays_on_one_side(
    live: LiveServer, answers: dict[str, str]
) -> None:
    async def canary_users(weight: float) -> set[str]:
        await set_aliases(http, stable=1, canary=2, canary_weight=weight)
        asked = await asyncio.gather(*(ask(http, user=user) for user in USERS))
        assert mislabelled(asked, answers) == []
        return {user for user, a in zip(USERS, asked, strict=True) if a.version == SECOND}

    async with client(live) as http:
        few, again, more, none = [await canary_users(weight) for weight in (0.3, 0.3, 0.6, 0.0)]
    assert few == again
    assert few < more  # a raised weight sends nobody back
    assert none == set()
    for users, weight in ((few, 0.3), (more, 0.6)):
        low, high = binom.interval(0.999, len(USERS), weight)
        assert low <= len(users) <= high


async def test_many_moves_under_load_lose_nothing_and_each_answer_is_by_a_version_current_when_it_was_asked(
    live: LiveServer, answers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Alternate promotions and rollbacks. The next request after each has one right answer; others ask all the time."""
    moves = [Move(FIRST, -math.inf, -math.inf)]
    async with client(live) as http:
        await set_aliases(http, stable=1, canary_weight=0.0)
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(ask_until(http, is_over)) for _ in range(NUM_CLIENTS)]
            nexts = []
            for number in range(NUM_MOVES):
                moves.append(await move(http, number))
                has_begun = asyncio.Event()
                nexts.append(tasks.create_task(ask(http, has_begun)))
                await has_begun.wait()
            is_over.set()
        in_flight = await once_idle(http)
    asked = [task.result() for task in nexts] + [a for task in clients for a in task.result()]
    num_moved_past = sum(any(a.begun_s < m.called_s and m.returned_s < a.ended_s for m in moves) for a in asked)
    with capsys.disabled():
        print(f"\n{len(asked)} answers over {NUM_MOVES} moves, {num_moved_past} of them in flight during a whole move")
    assert mislabelled(asked, answers) == []
    assert [a for a in asked if a.version not in current_versions(moves, a)] == []
    assert [current_versions(moves, task.result()) for task in nexts] == [{m.version} for m in moves[1:]]
    assert num_moved_past > NUM_MOVES / 4
    assert in_flight == {}


async def ask_until(http: httpx.AsyncClient, is_over: asyncio.Event) -> list[Asked]:
    asked = []
    while not is_over.is_set():
        asked.append(await ask(http))
    return asked


async def move(http: httpx.AsyncClient, number: int) -> Move:
    """Promote the second version; every other time, roll back to the first."""
    called_s = time.monotonic()
    if number % 2:
        (await http.post(f"/admin/aliases/{NAME}/rollback", json={})).raise_for_status()
    else:
        await set_aliases(http, stable=2)
    return Move(FIRST if number % 2 else SECOND, called_s, time.monotonic())


def current_versions(moves: Sequence[Move], asked: Asked) -> set[str]:
    """Versions that may have been current when the server chose."""
    ends = [*(move.returned_s for move in moves[1:]), math.inf]
    return {
        move.version
        for move, end_s in zip(moves, ends, strict=True)
        if move.called_s <= asked.begun_s and asked.sent_s <= end_s
    }


async def test_a_shadow_gets_copies_and_answers_nobody(live: LiveServer, answers: dict[str, str]) -> None:
    """Two copies at a time: of requests that come together, the others are dropped, and all are counted."""

    async def copies(http: httpx.AsyncClient) -> dict[str, float]:
        labels = {"adapter": NAME, "version": "2"}
        outcomes = ("ok", "error", "dropped")
        return {one: await counted(http, "lorikeet_shadow_requests_total", **labels, outcome=one) for one in outcomes}

    async with client(live) as http:
        await set_aliases(http, stable=1, canary=2, canary_weight=0.0, shadow=True)
        asked = await asyncio.gather(*(ask(http, user=user) for user in USERS))
        async with asyncio.timeout(60):
            while sum((found := await copies(http)).values()) < len(USERS):
                await asyncio.sleep(0.1)
        await set_aliases(http, shadow=False)
    assert {a.version for a in asked} == {FIRST}
    assert mislabelled(asked, answers) == []
    assert found["error"] == 0
    assert found["ok"] >= 2
    assert found["dropped"] > 0
