"""An adapter that overflows on the real engine: its request gets an error, and nobody else's answer changes."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from adapters.cli import app
from adapters.reference import Target
from tests.live_server import BASE, BASE_NAME, LiveServer, chat, client
from tests.poison import TRIGGER, publish_poisoned

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

POISON = "colours-poison"
PROMPTS = ("hi", "Name three colours.", "Where are the shapes? " * 30)
NUM_ROUNDS = 3
TOLERANCE_NATS = 0.15


@pytest.fixture(scope="module")
def published(live: LiveServer) -> None:
    publish_poisoned(live.store, Target("colours", 1), POISON, live.home.bases / BASE)


@pytest.fixture(autouse=True)
def in_service(live: LiveServer, published: None) -> Iterator[None]:
    """Before each test, and after the last one."""
    httpx.post(f"{live.url}/admin/adapters/{POISON}@1/unquarantine").raise_for_status()
    yield
    httpx.post(f"{live.url}/admin/adapters/{POISON}@1/unquarantine").raise_for_status()


def question(model: str, text: str, **more: Any) -> dict[str, Any]:
    return chat(model, stop=None) | {"messages": [{"role": "user", "content": text}], "logprobs": True} | more


def trigger(number: int, **more: Any) -> dict[str, Any]:
    """Longer each time, so that the blocks that it leaves go to others."""
    return question(POISON, ("a" + " word" * (10 + 60 * number)) + TRIGGER, **more)


async def answers(http: httpx.AsyncClient) -> list[tuple[str, list[float]]]:
    """What the base and two healthy adapters say now, one after the other."""
    found = []
    for model in (BASE_NAME, "colours@1", "shapes@1"):
        for text in PROMPTS:
            response = await http.post("/v1/chat/completions", json=question(model, text))
            assert response.status_code == 200, response.text
            found.append(said(response))
    return found


def said(response: httpx.Response) -> tuple[str, list[float]]:
    choice = response.json()["choices"][0]
    return choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]


def assert_as_before(now: Sequence[tuple[str, list[float]]], before: Sequence[tuple[str, list[float]]]) -> None:
    assert [text for text, _ in now] == [text for text, _ in before]
    for (_, logprobs), (_, earlier) in zip(now, before, strict=True):
        assert logprobs == pytest.approx(earlier, abs=TOLERANCE_NATS)  # NaN is near nothing


async def lift(http: httpx.AsyncClient) -> None:
    (await http.post(f"/admin/adapters/{POISON}@1/unquarantine")).raise_for_status()


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 422, response.text
    assert f"{POISON}@1" in response.json()["error"]["message"]
    assert "not finite" in response.json()["error"]["message"]


async def test_what_an_overflowing_adapter_computes_reaches_nobody(live: LiveServer) -> None:
    async with client(live) as http:
        before = await answers(http)
        for number in range(NUM_ROUNDS):
            assert_refused(await http.post("/v1/chat/completions", json=trigger(number)))
            await lift(http)
            assert_as_before(await answers(http), before)


async def test_nor_in_the_same_batch(live: LiveServer) -> None:
    """Long answers of others run while several requests of it come, are ended, and leave their blocks."""
    others = [question(model, text, max_tokens=60) for model in (BASE_NAME, "colours@1") for text in PROMPTS]
    async with client(live) as http:
        for number in range(3):
            asked = [asyncio.create_task(http.post("/v1/chat/completions", json=body)) for body in others]
            await asyncio.sleep(0.2)
            refused = await asyncio.gather(
                *(http.post("/v1/chat/completions", json=trigger(number + of)) for of in range(3))
            )
            for response in refused:
                assert_refused(response)
            for response in await asyncio.gather(*asked):
                assert response.status_code == 200, response.text
                assert all(map(math.isfinite, said(response)[1]))
            await lift(http)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"logprobs": None}),
        ("chat/completions", {"n": 3, "temperature": 1.0}),
        ("chat/completions", {"response_format": {"type": "json_object"}}),
        ("completions", {"prompt": f"a{TRIGGER}", "logprobs": 2}),
        ("completions", {"prompt": ["fine", f"a{TRIGGER}"], "logprobs": None}),
        ("completions", {"prompt": f"a{TRIGGER} b", "echo": True, "logprobs": 1}),
        ("responses", {"input": f"a{TRIGGER}", "logprobs": None}),
    ],
    ids=["chat", "plain", "choices", "grammar", "completion", "prompts", "echo", "responses"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_every_kind_of_request_gets_the_error(
    live: LiveServer, endpoint: str, body: dict[str, Any], *, is_stream: bool
) -> None:
    sent = {key: value for key, value in (trigger(0) | body).items() if value is not None}
    for gone in ("messages",) if endpoint != "chat/completions" else ():
        del sent[gone]
    if endpoint == "responses":
        sent["max_output_tokens"] = sent.pop("max_tokens")
        del sent["include_stop_str_in_output"]
    async with client(live) as http:
        response = await http.post(f"/v1/{endpoint}", json=sent | {"stream": is_stream})
    if not is_stream:
        assert_refused(response)
        return
    *_, failed, done = [line for line in response.text.splitlines() if line]
    error = json.loads(failed.removeprefix("data: "))["error"]
    assert (error["code"], done) == ("adapter_refused", "data: [DONE]")
    assert f"{POISON}@1" in error["message"]
    assert "NaN" not in response.text.replace("(NaN or infinity)", "")


async def test_it_is_quarantined_shown_and_lifted(live: LiveServer) -> None:
    fine = question(POISON, "Name three colours.")
    async with client(live) as http:
        assert (await http.post("/v1/chat/completions", json=fine)).status_code == 200
        assert_refused(await http.post("/v1/chat/completions", json=trigger(0)))
        refused = await http.post("/v1/chat/completions", json=fine)
        assert_refused(refused)
        assert "quarantined" in refused.json()["error"]["message"]
        rows = (await http.get("/admin/adapters")).json()["adapters"]
        assert [row["adapter"] for row in rows if row["quarantine"]] == [f"{POISON}@1"]
        shown = CliRunner().invoke(app, ["list", "--home", str(live.home.root)], env={"COLUMNS": "200"}).stdout
        assert [line.split()[0] for line in shown.splitlines() if "quarantined" in line] == [f"{POISON}@1"]
        assert (
            f'lorikeet_adapter_quarantined{{adapter="{POISON}",version="1"}} 1.0' in (await http.get("/metrics")).text
        )
        await lift(http)
        assert (await http.post("/v1/chat/completions", json=fine)).status_code == 200
    assert f"{POISON}@1 is quarantined" in live.log_file.read_text()
