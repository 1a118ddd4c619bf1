"""The operator's routes: tiers, loads and pins, aliases and canaries, and who may call them."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.reference import Target
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.engine.protocol import BACKGROUND_PRIORITY, Answer, Endpoint
from serve.records import Caller, RequestResult
from tests.eventually import eventually
from tests.fake_engine import FakeEngine
from tests.serving import BASE_NAME, Serving, chat, make_serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    return make_serving(store, base_folder, max_loras=3)


async def test_each_version_is_shown_in_its_tier(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("medical", promote=False)
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json=chat("medical"))
        rows = (await client.get("/admin/adapters")).json()["adapters"]
    first, second = rows
    assert (first["adapter"], first["tier"], first["aliases"], first["in_flight"]) == (
        "medical@1",
        "slot",
        ["stable"],
        0,
    )
    assert first["size_bytes"] > 0
    assert first["load_s"] >= 0
    assert first["parity_error_nats"] == 0
    assert (second["adapter"], second["tier"], second["load_s"]) == ("medical@2", "store", None)


async def test_load_pin_unpin_and_unload(serving: Serving) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        for action, resident, pinned in (
            ("load", {"medical@1"}, set()),
            ("pin", {"medical@1"}, {"medical@1"}),
            ("unpin", {"medical@1"}, set()),
            ("unload", set(), set()),
        ):
            response = await client.post(f"/admin/adapters/medical@1/{action}")
            assert response.json() == {"adapter": "medical@1", "done": action}
            assert (serving.engine.resident, serving.engine.pinned) == (resident, pinned)


async def test_a_pinned_version_is_not_unloaded_and_the_pin_is_in_the_store(serving: Serving) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        await client.post("/admin/adapters/medical/pin")
        response = await client.post("/admin/adapters/medical/unload")
    assert response.status_code == 409
    assert "Unpin it first" in response.json()["error"]["message"]
    assert serving.store.pins("medical") == {1}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/admin/adapters/nobody/load", 404), ("/admin/adapters/medical/explode", 400), ("/admin/aliases/nobody", 404)],
)
async def test_what_is_not_there_is_said(serving: Serving, path: str, status: int) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        response = await client.post(path, json={})
    assert response.status_code == status
    assert response.json()["error"]["message"]


async def test_aliases_move_together_and_take_effect_for_the_next_request(serving: Serving) -> None:
    for _ in range(3):
        serving.publish("medical", promote=False)
    serving.store.promote("medical", 1)
    async with serving.client() as client:
        moved = await client.post("/admin/aliases/medical", json={"stable": 2, "canary": 3, "canary_weight": 1.0})
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
        back = await client.post("/admin/aliases/medical", json={"canary_weight": 0.0, "reason": "slow"})
        after = await client.post("/v1/chat/completions", json=chat("medical"))
    assert moved.json() == {
        "name": "medical",
        "aliases": {"stable": 2, "canary": 3},
        "canary_weight": 1.0,
        "shadow": False,
    }
    assert answered.headers["x-lorikeet-adapter"] == "medical@3"
    assert (back.json()["canary_weight"], after.headers["x-lorikeet-adapter"]) == (0.0, "medical@2")


@pytest.mark.parametrize(
    "wanted",
    [{"stable": 9}, {"stable": "1"}, {"canary_weight": 2}, {"canary_weight": 0.5}, {"gold": 1}, {"stable": True}],
)
async def test_a_move_that_makes_no_sense_changes_nothing(serving: Serving, wanted: dict[str, object]) -> None:
    serving.publish("medical")
    history = serving.store.history("medical")
    async with serving.client() as client:
        response = await client.post("/admin/aliases/medical", json=wanted)
    assert 400 <= response.status_code < 500
    assert serving.store.history("medical") == history


async def test_a_rollback_is_one_call(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("medical")
    async with serving.client() as client:
        response = await client.post("/admin/aliases/medical/rollback", json={"reason": "valid format 0.4"})
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
        again = await client.post("/admin/aliases/medical/rollback", json={})
    assert response.json()["aliases"] == {"stable": 1}
    assert answered.headers["x-lorikeet-adapter"] == "medical@1"
    assert serving.store.history("medical")[-1].reason == "valid format 0.4"
    assert 400 <= again.status_code < 500


@pytest.mark.slow
async def test_one_user_stays_on_one_side_of_a_split(serving: Serving) -> None:
    for _ in range(2):
        serving.publish("medical", promote=False)
    serving.store.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.5)
    sides: dict[str, set[str]] = {}
    async with serving.client() as client:
        for number in range(60):
            user = f"user-{number % 20}"
            response = await client.post("/v1/chat/completions", json=chat("medical", user=user))
            sides.setdefault(user, set()).add(response.headers["x-lorikeet-adapter"])
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"medical@1", "medical@2"}


async def test_a_shadow_gets_copies_and_answers_nobody(serving: Serving) -> None:
    for _ in range(2):
        serving.publish("medical", promote=False)
    serving.store.set_aliases("medical", {"stable": 1, "canary": 2}, is_shadow=True)
    async with serving.client() as client:
        response = await client.post(
            "/v1/chat/completions", json=chat("medical", stream=True, stream_options={"include_usage": True})
        )
    await serving.parts.shadow.drain()
    assert response.headers["x-lorikeet-adapter"] == "medical@1"
    answered, copied = serving.engine.callers
    assert (answered.source, answered.tenant) == ("client", "anonymous")
    assert copied == Caller("shadow")  # its tokens are nobody's
    copy = serving.engine.bodies[-1]
    assert (copy["model"], copy["stream"], copy["priority"] > 1000) == ("medical@2", False, True)
    assert "stream_options" not in copy
    labels = {"adapter": "medical", "version": "2", "outcome": "ok"}
    assert serving.metrics.registry.get_sample_value("lorikeet_shadow_requests_total", labels) == 1


class SlowShadow(FakeEngine):
    """Answers clients at once, and never a copy."""

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        self.never_answers = body["priority"] == BACKGROUND_PRIORITY
        return await super().answer(endpoint, body, caller, result)


async def test_a_slow_shadow_delays_nobody_and_is_capped(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, engine=SlowShadow())
    for _ in range(2):
        serving.publish("medical", promote=False)
    serving.store.set_aliases("medical", {"stable": 1, "canary": 2}, is_shadow=True)
    async with asyncio.timeout(10), serving.client() as client:
        responses = [await client.post("/v1/chat/completions", json=chat("medical")) for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    await eventually(lambda: [body["model"] for body in serving.engine.bodies].count("medical@2") == 2)
    labels = {"adapter": "medical", "version": "2", "outcome": "dropped"}
    assert serving.metrics.registry.get_sample_value("lorikeet_shadow_requests_total", labels) == 3
    await serving.parts.shadow.stop()
    assert serving.engine.was_cancelled


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """One key of each kind, in `keys.json`."""
    grants = {
        "admin": KeyGrant(tenant="ops", is_admin=True),
        "medical": KeyGrant(tenant="clinic", adapters=("med*",)),
        "slow": KeyGrant(tenant="slow", requests_per_minute=1),
    }
    file = tmp_path / "keys.json"
    return {name: create_key(file, grant, now=datetime.now(UTC)).token for name, grant in grants.items()}


@pytest.fixture
def guarded(store: AdapterStore, base_folder: Path, tmp_path: Path, tokens: dict[str, str]) -> Serving:
    assert tokens
    serving = make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    serving.publish("medical")
    serving.publish("legal")
    return serving


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_with_keys_nobody_is_answered_without_one(guarded: Serving, path: str) -> None:
    async with guarded.client() as client:
        response = await client.post(path, json=chat("medical"))
        models = await client.get("/v1/models")
        admin = await client.get("/admin/adapters")
    assert (response.status_code, models.status_code, admin.status_code) == (401, 401, 401)
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_forbidden_adapter_answers_exactly_as_an_unknown_one(guarded: Serving, tokens: dict[str, str]) -> None:
    async with guarded.client(tokens["medical"]) as client:
        allowed = await client.post("/v1/chat/completions", json=chat("medical"))
        forbidden = await client.post("/v1/chat/completions", json=chat("legal"))
        unknown = await client.post("/v1/chat/completions", json=chat("legax"))
        models = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
        card = await client.get("/v1/models/legal")
    assert allowed.status_code == 200
    assert (forbidden.status_code, card.status_code) == (404, 404)
    assert forbidden.json() == {
        "error": unknown.json()["error"] | {"message": unknown.json()["error"]["message"].replace("legax", "legal")}
    }
    assert models == ["medical", "medical@1"]
    assert BASE_NAME not in models


async def test_only_an_admin_key_opens_the_admin_routes(guarded: Serving, tokens: dict[str, str]) -> None:
    async with guarded.client(tokens["medical"]) as client:
        refused = await client.post("/admin/adapters/medical/load")
    async with guarded.client(tokens["admin"]) as client:
        allowed = await client.post("/admin/adapters/medical/load")
    assert (refused.status_code, allowed.status_code) == (403, 200)


async def test_over_the_limit_is_a_429_that_says_when_to_come_back(guarded: Serving, tokens: dict[str, str]) -> None:
    async with guarded.client(tokens["slow"]) as client:
        first = await client.post("/v1/chat/completions", json=chat("medical"))
        second = await client.post("/v1/chat/completions", json=chat("medical"))
    assert (first.status_code, second.status_code) == (200, 429)
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    labels = {"adapter": "", "version": "", "reason": "requests"}  # refused before anything was read
    assert guarded.metrics.registry.get_sample_value("lorikeet_rejections_total", labels) == 1


@pytest.mark.slow
async def test_hundreds_of_moves_under_load_lose_nothing_and_answer_with_a_version_of_the_moment(
    serving: Serving,
) -> None:
    for _ in range(3):
        serving.publish("medical", promote=False)
    serving.store.promote("medical", 1)
    moves = [1]  # the version after each move

    async def ask() -> int:
        num_answers = 0
        async with serving.client() as client:
            while len(moves) < 120:
                first = len(moves) - 1
                response = await client.post("/v1/chat/completions", json=chat("medical"))
                current = {f"medical@{version}" for version in moves[first:]}
                assert response.status_code == 200
                assert response.headers["x-lorikeet-adapter"] in current
                num_answers += 1
        return num_answers

    async def move() -> None:
        while len(moves) < 120:
            await asyncio.sleep(0)
            version = len(moves) % 3 + 1
            serving.store.promote("medical", version)
            moves.append(version)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(move())
        answers = [tasks.create_task(ask()) for _ in range(4)]
    assert min(task.result() for task in answers) > 10
    assert all(r.in_flight == 0 for r in serving.residency.residents.values())


async def test_golden_replay_sees_an_adapter_that_answers_as_another(
    store: AdapterStore, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving = make_serving(store, base_folder, golden_replay=True)
    serving.publish("medical")
    await serving.residency.load(Target("medical", 1))
    replay = serving.golden_replay()
    assert await replay.check(Target("medical", 1))
    serving.engine.adapter_logprobs = (-4.0, -6.0)
    assert not await replay.check(Target("medical", 1))
    registry = serving.metrics.registry
    for outcome in ("ok", "wrong"):
        labels = {"adapter": "medical", "version": "1", "outcome": outcome}
        assert registry.get_sample_value("lorikeet_golden_replays_total", labels) == 1
    assert "no longer gives its own answers" in caplog.text
