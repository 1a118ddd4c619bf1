"""Which side of a canary split answers: by user or API key, and by aliases and weight of one moment."""

from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from adapters.store.state import AdapterState
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.routing.resolver import Resolver
from tests.serving import BASE_NAME, Serving, make_serving

MESSAGES = [{"role": "user", "content": "Angina"}]


@pytest.fixture
def tokens(tmp_path: Path) -> list[str]:
    file = tmp_path / "keys.json"
    return [create_key(file, KeyGrant(tenant=f"tenant-{n}"), now=datetime.now(UTC)).token for n in range(20)]


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path, tmp_path: Path, tokens: list[str]) -> Serving:
    """Half of the traffic of `medical` is for its canary; who asks has a key."""
    assert tokens
    serving = make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    for _ in range(2):
        serving.publish("medical", promote=False)
    store.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.5)
    return serving


async def sides(serving: Serving, token: str, **more: Any) -> set[str]:
    """The versions that answer one key's requests."""
    body = {"model": "medical", "messages": MESSAGES} | more
    async with serving.client(token) as client:
        answered = [await client.post("/v1/chat/completions", json=body) for _ in range(3)]
    return {response.headers["x-lorikeet-adapter"] for response in answered}


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_api_key_stays_on_one_side_where_no_user_is_named(serving: Serving, tokens: list[str]) -> None:
    by_key = [await sides(serving, token) for token in tokens]
    assert {len(versions) for versions in by_key} == {1}
    assert set.union(*by_key) == {"medical@1", "medical@2"}


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_user_stays_on_one_side_whichever_key_asks(serving: Serving, tokens: list[str]) -> None:
    by_key = [await sides(serving, token, user="ann") for token in tokens]
    assert len(set.union(*by_key)) == 1


class RestlessStore(AdapterStore):
    """Between one look at it and the next, everything moves: version 2 is canary without a share, 3 with all of it."""

    moves = cycle([({"canary": 3}, 1.0), ({"canary": 2}, 0.0)])

    def state(self, name: str) -> AdapterState:
        seen = super().state(name)
        moves, canary_weight = next(self.moves)
        AdapterStore(self.root).set_aliases(name, moves, canary_weight)
        return seen


@pytest.mark.slow
def test_aliases_and_weight_are_of_one_moment(serving: Serving) -> None:
    serving.publish("medical", promote=False)
    serving.store.set_aliases("medical", {"canary": 2}, canary_weight=0.0)
    store, chosen = RestlessStore(serving.store.root), []
    for _ in range(6):
        chosen.append(Resolver(store, BASE_NAME).resolve("medical", lambda _: True, "ann").served_name)
        store.state("medical")  # one look more, so that the next request comes at the other moment
    assert set(chosen) == {"medical@1", "medical@3"}
