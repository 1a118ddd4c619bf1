"""What clients read in `/v1/models`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import AsyncOpenAI

from adapters.bases import read_base
from adapters.store.history import Event, append_events
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for, write_soft_prompt
from tests.serving import BASE_NAME, Serving, make_serving

pytestmark = pytest.mark.anyio

PUBLISHED = datetime(2026, 11, 22, 6, 50, 12, tzinfo=UTC)


@pytest.fixture
def serving(tmp_path: Path, base_folder: Path) -> Serving:
    store = AdapterStore(tmp_path / "adapters", clock=lambda: PUBLISHED)
    serving = make_serving(store, base_folder, max_model_len=1024)
    serving.publish("medical")
    return serving


async def card(serving: Serving, name: str) -> dict[str, Any]:
    async with serving.client() as client:
        listed: list[dict[str, Any]] = (await client.get("/v1/models")).json()["data"]
        one = (await client.get(f"/v1/models/{name}")).json()
    assert one in listed
    return dict(one)


@pytest.mark.parametrize("name", ["medical", "medical@1"])
async def test_a_versions_card_says_when_and_of_what(serving: Serving, name: str) -> None:
    assert await card(serving, name) == {
        "id": name,
        "object": "model",
        "created": int(PUBLISHED.timestamp()),
        "owned_by": "lorikeet",
        "root": "medical@1",
        "parent": BASE_NAME,
        "max_model_len": 1024,
        "defaults": None,
    }


async def test_the_bases_card_says_when_it_was_prepared(serving: Serving) -> None:
    prepared = datetime.fromisoformat(read_base(serving.base_folder).created_at)
    found = await card(serving, BASE_NAME)
    assert (found["created"], found["max_model_len"]) == (int(prepared.timestamp()), 1024)
    assert (found["parent"], found["root"]) == (None, BASE_NAME)


async def test_no_card_tells_a_path(serving: Serving, tmp_path: Path) -> None:
    async with serving.client() as client:
        text = (await client.get("/v1/models")).text
    assert str(tmp_path) not in text
    assert "/" not in text


@pytest.mark.parametrize("at", ["", "yesterday", "2026-11-22T06:50:12"])
async def test_a_history_that_does_not_say_when_harms_no_list(serving: Serving, at: str) -> None:
    folder = serving.store.root / "medical"
    (folder / "history.jsonl").unlink()
    append_events(folder, [Event(kind="published", at=at, version=1)])
    created = (await card(serving, "medical@1"))["created"]
    assert created == (int(PUBLISHED.timestamp()) if at.startswith("2026") else 0)


async def test_openais_client_reads_the_cards(serving: Serving) -> None:
    http_client: Any = httpx.AsyncClient(transport=httpx.ASGITransport(serving.app))
    async with AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http_client) as client:
        listed = [model async for model in client.models.list()]
        one = await client.models.retrieve("medical@1")
    assert [model.id for model in listed] == [BASE_NAME, "medical", "medical@1"]
    assert (one.created, one.owned_by) == (int(PUBLISHED.timestamp()), "lorikeet")


def test_the_cards_are_described(serving: Serving) -> None:
    described = serving.app.openapi()["components"]["schemas"]["ModelCard"]["properties"]
    assert {"created", "parent", "root", "max_model_len"} < set(described)
    assert "tokens of prompt and answer" in described["max_model_len"]["description"]


async def test_a_soft_prompts_card_leaves_its_virtual_tokens_out(
    serving: Serving, tmp_path: Path, base_folder: Path
) -> None:
    folder = write_soft_prompt(tmp_path / "soft", torch.ones(24, 8))
    serving.store.publish(folder, draft_for(folder, "soft", base=read_base(base_folder).ref))
    assert (await card(serving, "soft@1"))["max_model_len"] == 1000
