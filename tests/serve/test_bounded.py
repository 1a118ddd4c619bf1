"""What a stranger can make grow: nothing. Ten thousand unknown names, and no route beside the documented ones."""

import asyncio
import gc
import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from adapters.store.store import AdapterStore
from tests.jobs_serving import make_jobs_serving
from tests.serving import COMPLETION_SCOPE, Serving
from tests.tracked_files import ROOT

pytestmark = pytest.mark.slow

STRANGER = "stranger-"


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    """With all that a server can have."""
    return make_jobs_serving(tmp_path, store, base_folder)


async def ask(serving: Serving, model: str) -> int:
    """The status of a request, without an HTTP client's own costs."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await serving.app(dict(COMPLETION_SCOPE), receive, send)
    return statuses[0]


def num_samples(serving: Serving) -> int:
    return sum(len(family.samples) for family in serving.metrics.registry.collect())


def tables(part: object, path: str = "parts") -> Iterator[tuple[str, int]]:
    """Entries of each container that the server's parts keep, and their parts."""
    for name, kept in vars(part).items():
        if isinstance(kept, dict | list | set | deque):
            yield f"{path}.{name}", len(kept)
        elif type(kept).__module__.startswith("serve.") and hasattr(kept, "__dict__"):
            yield from tables(kept, f"{path}.{name}")


def containers() -> Iterator[Any]:
    """Every dictionary, list and set of this process; the collector does not track a dictionary of plain values."""
    gc.collect()
    tracked = gc.get_objects()
    yield from (found for found in tracked if issubclass(type(found), dict | list | set | frozenset | deque))
    referred = gc.get_referents(*tracked)
    plain = {id(found): found for found in referred if type(found) is dict and not gc.is_tracked(found)}
    yield from plain.values()


def num_kept_names() -> int:
    """Names of strangers that anything in this process holds: keys of caches, of locks, of labels."""
    return sum(type(entry) is str and STRANGER in entry for found in containers() for entry in list(found))


@pytest.mark.anyio
async def test_ten_thousand_unknown_names_leave_nothing_behind(serving: Serving) -> None:
    serving.publish("medical")
    first = {await ask(serving, f"{STRANGER}first"), await ask(serving, f"{STRANGER}first@3")}
    sizes = num_samples(serving), dict(tables(serving.parts))
    later = {await ask(serving, f"{STRANGER}{number}") for number in range(10_000)}
    assert first == later == {404}
    assert (num_samples(serving), dict(tables(serving.parts))) == sizes
    assert num_kept_names() < 10
    assert (serving.engine.bodies, serving.engine.loads) == ([], [])


@pytest.mark.parametrize("value", [[], 1])
def test_names_that_were_kept_would_be_found(value: object) -> None:
    kept = {f"{STRANGER}{number}": value for number in range(50)}
    holder = [kept]
    assert num_kept_names() >= len(holder[0])


def documented_routes() -> set[tuple[str, str]]:
    """Methods and paths of the table under the heading "Routes" of docs/api.md."""
    section = (ROOT / "docs" / "api.md").read_text().partition("\n## Routes\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| ([A-Z]+) \| `(/\S*)` \|", section, re.MULTILINE))


def served_routes(serving: Serving) -> set[tuple[str, str]]:
    """What is mounted. HEAD goes with GET; what has no methods, a mounted application for one, takes any."""
    return {
        (method, getattr(route, "path", repr(route)))
        for route in serving.app.routes
        for method in (getattr(route, "methods", None) or {"ANY"}) - {"HEAD"}
    }


def test_exactly_the_documented_routes_are_served(serving: Serving) -> None:
    assert documented_routes() == served_routes(serving)
