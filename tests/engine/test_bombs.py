"""Requests that would stop a server are refused; an engine or a server that was stopped or killed has a successor.

This server takes grammars of clients' own, so that all that stands behind the limits is tried, too. The last tests
stop and kill its engine, and then it.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from config.home import Home
from loadtest.bench.server import RunningServer, running_server
from serve.engine.cpu.threads import own_cores
from tests.live_server import ANSWERS, BASE_NAME, counted, engine_processes, tiers, until, write_serve_config
from tests.live_server import chat as of_adapter
from tests.serving import JSON

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

STALL_S = 15.0
RESTARTS = "lorikeet_engine_restarts_total"
MESSAGES = [{"role": "user", "content": "Hi"}]
PATIENCE_S = 10.0  # of others, who wait a fraction of a second alone; the bombs took 10 to 40 s of everybody
PATTERNS = {f"p{number}": {"type": "string", "pattern": ".{0,2000}"} for number in range(10)}
AMBIGUOUS = 's ::= s s | "a" | "a" s "a" | ""'
LETTERS = {"allowed_token_ids": [81, 82], "ignore_eos": True}  # "a" and "b" in SmolLM2's vocabulary


@pytest.fixture(scope="module")
def server(live_home: Home) -> Iterator[RunningServer]:
    limits = {"allow_regex": True, "allow_grammar": True, "allow_structural_tag": True, "max_grammar_cost": 100_000}
    config = write_serve_config(
        live_home.root, "bombs", limits=limits, engine_stall_timeout_s=STALL_S, cpu_compile=False
    )
    with running_server(config, live_home.root, live_home.root / "bombs.log") as running:
        yield running


def chat(**more: Any) -> dict[str, Any]:
    return {"model": BASE_NAME, "messages": MESSAGES, "max_tokens": 8, "temperature": 0.0} | more


def with_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body)


async def ask_others(url: str, bomb: "asyncio.Task[httpx.Response]") -> None:
    """/health and an ordinary chat, until the bomb is answered and at least once."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        while True:
            assert (await http.get("/health")).status_code == 200
            answered = await ask(http, chat())
            assert answered.status_code == 200, answered.text
            if bomb.done():
                return


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (with_schema({"type": "object", "properties": PATTERNS}), "processor time to compile"),
        (
            {"structured_outputs": {"regex": "(a?a?a?a?a?a?a?a?){0,100}b"}, **LETTERS},
            "may be empty",
        ),
        ({"structured_outputs": {"regex": "(a+){0,60}b"}, **LETTERS}, "ms a token"),
        ({"structured_outputs": {"grammar": f"root ::= s\n{AMBIGUOUS}"}, **LETTERS}, "ms a token"),
        # The compiler's trial takes the other way, so the engine finds out.
        ({"structured_outputs": {"grammar": f'root ::= "!" | "b" s\n{AMBIGUOUS}'}, **LETTERS}, "the answer was ended"),
    ],
    ids=["parse", "token", "repeats", "ebnf", "hidden"],
)
async def test_a_bomb_is_refused_and_holds_up_nobody(server: RunningServer, bomb: dict[str, Any], reason: str) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        await ask(http, chat())
        thrown = asyncio.create_task(ask(http, chat(**bomb, max_tokens=400)))
        await ask_others(server.url, thrown)
        refused = await thrown
    assert refused.status_code == 400, refused.text
    assert re.search(reason, refused.json()["error"]["message"])


async def test_a_bomb_that_is_streamed_is_a_400_too(server: RunningServer) -> None:
    body = chat(structured_outputs={"grammar": f"root ::= s s\n{AMBIGUOUS}"}, stream=True)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        assert (await ask(http, body)).status_code == 400


def filled(start: str, unit: str, end: str, num_bytes: int = 500_000) -> str:
    return start + ",".join([unit] * ((num_bytes - len(start)) // (len(unit) + 1))) + end


MODEL = f'{{"model": "{BASE_NAME}", '
TURN = MODEL + '"messages": [{"role": "user", "content": '
BODIES = {
    "objects": filled(MODEL + '"metadata": [', "{}", "]}"),
    "lists": filled(MODEL + '"messages": [', "[[[[]]]]", "]}"),
    "megabytes": filled(MODEL + '"messages": [', "[[[[]]]]", "]}", 4_000_000),
    "keys": MODEL + ",".join(f'"{number}": 1' for number in range(40_000)) + "}",
    "text": TURN + f'"{"x" * 500_000}"}}]}}',
    "ids": filled(MODEL + '"prompt": [', "7", "]}"),
    "deep": MODEL + '"x": ' + "[" * 250_000,
    "texts": filled(TURN + "[", '""', "]}]}"),
    "parts": filled(TURN + "[", '{"type": "text"}', "]}]}", 30_000),
    "items": filled(MODEL + '"input": [', "{}", "]}", 750),
}


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses"])
async def test_no_shape_of_body_holds_up_anybody(server: RunningServer, endpoint: str) -> None:
    """Four of each at once; the megabytes alone took the event loop for more than two seconds each."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http, asyncio.TaskGroup() as group:
        bodies = list(BODIES.values()) * 4
        sent = [group.create_task(http.post(f"/v1/{endpoint}", content=body, headers=JSON)) for body in bodies]
        async with httpx.AsyncClient(base_url=server.url, timeout=2.0) as other:
            while not all(task.done() for task in sent):
                assert (await other.get("/health")).status_code == 200
                await asyncio.sleep(0.01)
    assert {task.result().status_code for task in sent} == {400, 413}


async def test_a_stream_that_the_engine_ends_says_why(server: RunningServer) -> None:
    body = chat(structured_outputs={"grammar": f'root ::= "!" | "b" "b" s\n{AMBIGUOUS}'}, **LETTERS, stream=True)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        answered = await ask(http, body | {"max_tokens": 400})
    *_, error, done, _ = answered.text.split("\n\n")
    assert (answered.status_code, done) == (200, "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "grammar_refused"


TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


@pytest.mark.parametrize(
    "asked",
    [
        with_schema({"type": "object", "patternProperties": {"^x": {"type": "integer"}}}),
        with_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "[a-c]{3}"}},
        {"tools": [{"type": "function", "function": TOOL | {"strict": True}}], "tool_choice": "required"},
    ],
    ids=["patternProperties", "schema", "object", "choice", "regex", "tool"],
)
async def test_whoever_comes_first_chooses_for_nobody(server: RunningServer, asked: dict[str, Any]) -> None:
    """vLLM chose its grammar backend by the first request, here the one with `patternProperties`."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        answered = await ask(http, chat(**asked, max_tokens=40))
    assert answered.status_code == 200, answered.text


async def test_what_cannot_be_held_to_is_refused(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        refused = await ask(http, chat(**with_schema({"type": "array", "uniqueItems": True})))
    assert refused.status_code == 400
    assert "uniqueItems" in refused.json()["error"]["message"]


async def test_a_killed_engine_is_started_again_and_its_adapters_come_back(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=240) as http:
        restarts = await counted(http, RESTARTS)
        (await http.post("/admin/adapters/colours@1/load")).raise_for_status()
        long_answer = chat(max_tokens=800, ignore_eos=True)
        asked = asyncio.create_task(ask(http, long_answer))
        streaming = asyncio.create_task(ask(http, long_answer | {"stream": True}))
        await asyncio.sleep(1.0)
        next(each for each in engine_processes(server.pid) if "Engine" in each.name()).kill()
        lost = await asked
        *_, event, end, _ = (await streaming).text.split("\n\n")
        assert (json.loads(event.removeprefix("data: "))["error"]["code"], end) == ("not_ready", "data: [DONE]")
        assert lost.status_code == 503, lost.text
        assert set(lost.json()["error"]) == {"message", "type", "param", "code"}
        await until(http, 503)
        refused = await ask(http, of_adapter("colours"))
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert (await http.get("/health")).status_code == 200
        await until(http, 200)
        async with asyncio.timeout(60):  # by itself: nobody has asked for it
            while (await tiers(http))["colours@1"] == "store":
                await asyncio.sleep(0.2)
        answered = await ask(http, of_adapter("colours"))
        assert answered.headers["x-lorikeet-cold"] == "0"
        assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["colours"]
        assert await counted(http, RESTARTS) == restarts + 1


async def test_an_engine_that_makes_no_step_is_ended_and_started_again(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=240) as http:
        restarts = await counted(http, RESTARTS)
        asked = asyncio.create_task(ask(http, chat(max_tokens=800, ignore_eos=True)))
        await asyncio.sleep(1.0)
        hanging = engine_processes(server.pid)
        for process in hanging:
            process.send_signal(signal.SIGSTOP)
        lost = await asked
        assert lost.status_code == 503, lost.text
        await until(http, 200)
        assert [process.name() for process in hanging if process.is_running()] == []
        assert (await ask(http, chat())).status_code == 200
        assert await counted(http, RESTARTS) == restarts + 1


async def test_a_killed_server_leaves_no_process_and_the_next_one_works(
    server: RunningServer, live_home: Home, tmp_path: Path
) -> None:
    family = psutil.Process(server.pid).children(recursive=True)
    engine = engine_processes(server.pid)
    assert len({process.name() for process in engine}) == 2
    if 2 <= len(own_cores()) <= 4:  # with others the worker is spawned
        assert server.pid not in {process.ppid() for process in engine}
    os.kill(server.pid, signal.SIGKILL)
    # Before the fixture ends: it kills what is left.
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 20)
    assert [process.name() for process in alive] == []
    config = write_serve_config(tmp_path, cpu_compile=False)
    with running_server(config, live_home.root, tmp_path / "next.log") as following:
        async with httpx.AsyncClient(base_url=following.url, timeout=120) as http:
            answered = await ask(http, of_adapter("shapes"))
        assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["shapes"]
        assert "Traceback" not in following.log_file.read_text()
