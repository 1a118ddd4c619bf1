"""`POST /v1/feedback`: what it takes, and what it says where it does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from quality.samples.records import Turn
from quality.samples.store import QualityStore
from serve.app import Parts
from tests.generations import generation
from tests.serve.monitor.test_assemble import make_watched

pytestmark = pytest.mark.anyio

ASKED = (Turn("user", "Angina?"),)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@asynccontextmanager
async def served(
    store: AdapterStore, base_folder: Path, home: Home, **quality: object
) -> AsyncIterator[tuple[httpx.AsyncClient, Parts]]:
    """A server without keys that has given one answer, `r-1`, to the tenant of everybody there."""
    serving, parts = make_watched(store, base_folder, home, **({"privacy": "full"} | quality))
    running = [asyncio.create_task(work()) for work in parts.background]
    await asyncio.sleep(0)
    if parts.monitor is not None:
        parts.monitor.generation_finished(generation(tenant="anonymous", messages=ASKED, response_id="chatcmpl-1"))
    async with serving.client() as client:
        yield client, parts
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def problem(response: httpx.Response) -> tuple[int, Any]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ({"correct": True}, (1.0, None)),
        ({"correct": False, "correction": "I20"}, (0.0, "I20")),
        ({"score": 0.25, "user": "ada"}, (0.25, None)),
    ],
)
async def test_feedback_is_stored_with_the_sample(
    store: AdapterStore, base_folder: Path, home: Home, said: dict[str, Any], stored: tuple[float, str | None]
) -> None:
    async with served(store, base_folder, home) as (client, _):
        response = await client.post("/v1/feedback", json={"response_id": "chatcmpl-1"} | said)
        assert (response.status_code, response.json()["adapter"]) == (200, "medical@3"), response.text
        with QualityStore(home.quality) as kept:
            (given,) = kept.feedback("medical", 3)
    assert (given.score, given.correction) == stored


async def test_an_unknown_answer_is_a_404(store: AdapterStore, base_folder: Path, home: Home) -> None:
    async with served(store, base_folder, home) as (client, _):
        response = await client.post("/v1/feedback", json={"request_id": "r-9", "correct": True})
    assert problem(response) == (404, "answer_not_found")


@pytest.mark.parametrize("quality", [{"privacy": "features"}, {"privacy": "none"}, {"enabled": False}])
async def test_without_stored_text_there_is_no_feedback(
    store: AdapterStore, base_folder: Path, home: Home, quality: dict[str, object]
) -> None:
    async with served(store, base_folder, home, **quality) as (client, _):
        response = await client.post("/v1/feedback", json={"request_id": "r-1", "correct": True})
    assert problem(response) == (409, "conflict")
    assert "quality.privacy" in response.text


async def test_a_paused_monitor_takes_no_feedback(store: AdapterStore, base_folder: Path, home: Home) -> None:
    async with served(store, base_folder, home) as (client, parts):
        assert parts.monitor is not None
        await parts.monitor.pause()
        response = await client.post("/v1/feedback", json={"request_id": "r-1", "correct": True})
    assert problem(response) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"correct": True}, "needs `request_id` or `response_id`"),
        ({"request_id": "r-1", "response_id": "c", "correct": True}, "and not both"),
        ({"request_id": "r-1"}, "needs one of `score`"),
        ({"request_id": "r-1", "score": 1, "correct": True}, "exclude each other"),
        ({"request_id": "r-1", "score": 1.5}, "body.score: Input should be less than or equal to 1"),
        ({"request_id": "r-1", "score": None}, "`score` must not be null"),
        ({"request_id": "r-1", "correction": "  "}, "body.correction: String should match pattern"),
        ({"request_id": "r-1", "correction": "a" * 16_385}, "at most 16384 characters"),
        ({"request_id": "r-1", "preference": "r-2"}, "body.preference: Input should be"),
        ({"request_id": "r-1", "correct": True, "stars": 5}, "body.stars: Extra inputs"),
    ],
)
async def test_a_body_that_is_no_feedback_is_told_why(
    store: AdapterStore, base_folder: Path, home: Home, body: dict[str, Any], wrong: str
) -> None:
    async with served(store, base_folder, home) as (client, _):
        response = await client.post("/v1/feedback", json=body)
    assert response.status_code == 400
    assert wrong in response.json()["error"]["message"]


@pytest.mark.slow
async def test_a_body_is_bounded(store: AdapterStore, base_folder: Path, home: Home) -> None:
    async with served(store, base_folder, home) as (client, _):
        response = await client.post("/v1/feedback", json={"request_id": "r-1", "correction": "a" * 140_000})
    assert problem(response) == (413, "body_too_large")
