"""The ingress over two replicas in this process: real applications on one store, with fake engines."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry
from ray.exceptions import RayActorError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from config.serve import ServeConfig
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.app import create_app
from serve.build import Foundation, build_parts
from serve.cluster.application import make_settings
from serve.cluster.ingress import Ingress
from serve.cluster.key_limits import KeyLimits, SharedLimits
from serve.cluster.relay import Batch, RelayedResponse, answer_batches
from serve.observe.metrics import ServeMetrics
from serve.records import Observers
from serve.residency.watch import StoreWatcher
from tests.fake_engine import FakeEngine
from tests.peft_folders import write_base_folder
from tests.serving import COMPLETION_SCOPE, Serving, chat, make_serving

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
ROLE = {"type": "http.response.body", "body": b'data: {"delta":{"role":"assistant","content":""}}', "more_body": True}
TOKEN = {"type": "http.response.body", "body": b'data: {"delta":{"content":"a"}}', "more_body": True}
END = {"type": "http.response.body", "body": b"data: [DONE]", "more_body": False}


class Replies:
    """A replica's answer, as Ray's handle gives it; it may end with the replica's death."""

    def __init__(self, batches: AsyncIterator[Batch]) -> None:
        self._batches = batches

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self._batches

    async def __anext__(self) -> Batch:
        return await anext(self._batches)

    def cancel(self) -> None:
        """The client has what it wants."""


class Handle:
    """Asks applications in turn, as a random router would."""

    def __init__(self, *apps: ASGIApp) -> None:
        self.apps = apps
        self.num_asked = 0
        self.answer = self

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, scope: Scope, body: bytes) -> Replies:
        self.num_asked += 1
        return Replies(answer_batches(self.apps[self.num_asked % len(self.apps)], scope, body))


class Dying(Handle):
    """Answers with given batches, then dies; the next one answers all."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.batches = batches

    def remote(self, scope: Scope, body: bytes) -> Replies:
        self.num_asked += 1
        return Replies(self._dying() if self.num_asked == 1 else self._whole())

    async def _dying(self) -> AsyncIterator[Batch]:
        for batch in self.batches:
            yield batch
        raise RayActorError

    async def _whole(self) -> AsyncIterator[Batch]:
        yield [START, ROLE, TOKEN, END]


def ingress_of(home: Path, *handles: Handle, bases: Sequence[str] = ("tiny",), **changes: Any) -> Ingress:
    configs = [ServeConfig.model_validate({"base": base, "served_model_name": base} | changes) for base in bases]
    return Ingress(make_settings(configs, Home(home), 1, None, 1), *cast(Any, handles))


def client_of(ingress: Ingress, token: str | None = None) -> httpx.AsyncClient:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await ingress(Request(scope, receive))
        await response(scope, receive, send)

    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


async def answer_of(ingress: Ingress) -> RelayedResponse:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    response = await ingress(Request(COMPLETION_SCOPE, receive))
    assert isinstance(response, RelayedResponse)
    return response


async def collect(response: RelayedResponse, sent: list[Message]) -> None:
    async for message in response.messages():
        sent.append(message)


@pytest.fixture
def replicas(store: AdapterStore, base_folder: Path) -> tuple[Serving, Serving]:
    return make_serving(store, base_folder), make_serving(store, base_folder)


async def test_a_stream_whose_replica_dies_after_a_token_ends_with_an_error(tmp_path: Path) -> None:
    handle, sent = Dying([[START, ROLE], [TOKEN]]), list[Message]()
    response = await answer_of(ingress_of(tmp_path, handle))
    with pytest.raises(RayActorError):
        await collect(response, sent)
    assert sent == [START, ROLE, TOKEN]
    assert handle.num_asked == 1  # a second answer would repeat tokens


@pytest.mark.parametrize("batches", [[], [[START]], [[START, ROLE]], [[START], [ROLE]]])
async def test_another_replica_is_asked_before_the_first_token(tmp_path: Path, batches: list[Batch]) -> None:
    handle = Dying(batches)
    response = await answer_of(ingress_of(tmp_path, handle))
    sent: list[Message] = []
    await collect(response, sent)
    assert sent == [START, ROLE, TOKEN, END]
    assert handle.num_asked == 2


@pytest.mark.slow
async def test_a_user_gets_one_side_of_a_canary_on_all_replicas(
    tmp_path: Path, replicas: tuple[Serving, Serving], store: AdapterStore
) -> None:
    for _ in range(2):
        replicas[0].publish("medical", promote=False)
    store.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.5)
    handle, sides = Handle(*(replica.app for replica in replicas)), {}
    async with client_of(ingress_of(tmp_path, handle)) as http:
        for number in range(40):
            body = chat("medical", user=f"user {number}")
            answers = [await http.post("/v1/chat/completions", json=body) for _ in replicas]
            sides[number] = {answer.headers["x-lorikeet-adapter"] for answer in answers}
    assert {len(versions) for versions in sides.values()} == {1}
    canary = sum(versions == {"medical@2"} for versions in sides.values())
    assert 10 <= canary <= 30
    assert [len(replica.engine.bodies) for replica in replicas] == [40, 40]


@pytest.mark.slow
async def test_a_quarantine_of_one_replica_holds_on_the_other(
    tmp_path: Path, replicas: tuple[Serving, Serving], store: AdapterStore
) -> None:
    replicas[0].publish("medical")
    handle = Handle(*(replica.app for replica in replicas))
    async with client_of(ingress_of(tmp_path, handle)) as http:

        async def statuses() -> list[int]:
            answers = [await http.post("/v1/chat/completions", json=chat("medical")) for _ in replicas]
            return [answer.status_code for answer in answers]

        assert await statuses() == [200, 200]
        store.quarantine(Target("medical", 1), "NaN in one replica")
        assert await statuses() == [422, 422]
        store.lift_quarantine(Target("medical", 1))
        assert await statuses() == [200, 200]


async def test_a_pin_is_followed_by_all_replicas(replicas: tuple[Serving, Serving], store: AdapterStore) -> None:
    replicas[0].publish("medical")
    watchers = [StoreWatcher(store, each.residency, each.metrics.adapter_retired) for each in replicas]
    for change, pinned in ((store.pin, {"medical@1"}), (store.unpin, set())):
        change(Target("medical", 1))
        for watcher in watchers:
            await watcher.follow("medical")
        assert [replica.engine.pinned for replica in replicas] == [pinned, pinned]


async def test_a_key_has_one_limit_over_several_bases(tmp_path: Path, store: AdapterStore) -> None:
    file, limits = tmp_path / "keys.json", KeyLimits()
    token = create_key(file, KeyGrant(tenant="acme", requests_per_minute=3), now=datetime.now(UTC)).token
    handles = []
    for base in ("small", "large"):
        config, folder = ServeConfig(base=base, served_model_name=base), write_base_folder(tmp_path / "bases" / base)
        on = Foundation(
            config,
            store,
            folder,
            FakeEngine(),
            ServeMetrics(CollectorRegistry(), base),
            KeyRing(file),
            Observers(),
            tenants=SharedLimits(limits, base),
        )
        handles.append(Handle(create_app(build_parts(on))))
    async with client_of(ingress_of(tmp_path, *handles, bases=("small", "large")), token) as http:
        asked = ("small", "large", "small", "large", "small")
        answers = [await http.post("/v1/chat/completions", json=chat(base)) for base in asked]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
