"""What the running server survives, with nothing lost and nothing wrong served."""

import asyncio
import random
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from adapters.reference import Target
from tests.head_words import publish_with_word
from tests.live_server import (
    ANSWERS,
    BASE,
    BASE_NAME,
    LiveServer,
    chat,
    client,
    once_idle,
    stream_long_answers,
    tiers,
)
from tests.poison import poisoning, publish_poisoned

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NUM_REQUESTS = 600
CONCURRENCY = 16
WORDS = {"colours": ("red", {"b": "blue", "c": "green"}), "shapes": ("circle", {"b": "square", "c": "oval"})}
"""What each domain's adapter answers, and its copies instead."""
MAX_IN_KERNEL = (4 << 20) + (1 << 18)
"""Bytes of a stream that Linux takes off a server by default (`tcp_wmem`), and those that the slow client does."""
POISON, OVERFLOWS = "shapes-poison", "not finite"


@pytest.fixture(scope="module")
def adapters(live: LiveServer) -> dict[str, str]:
    """Six adapters for two slots, and what each one answers: no two the same."""
    answers = dict(ANSWERS)
    for domain, (old, words) in WORDS.items():
        for copy, new in words.items():
            name = f"{domain}-{copy}"
            publish_with_word(live.store, Target(domain, 1), name, old, new, live.home.bases / BASE)
            answers[name] = ANSWERS[domain].replace(old, new)
    assert len(set(answers.values())) == len(answers) == 6
    return answers


@pytest.mark.anyio
async def test_an_unload_really_frees_the_slot_and_the_memory(live: LiveServer) -> None:
    """By the engine's own list, not by our bookkeeping."""
    async with client(live) as http:
        (await http.post("/v1/chat/completions", json=chat("colours"))).raise_for_status()
        assert (await tiers(http))["colours@1"] == "slot"
        (await http.post("/admin/adapters/colours@1/unload")).raise_for_status()
        assert (await tiers(http))["colours@1"] == "store"
        answered = await http.post("/v1/chat/completions", json=chat("colours"))
        assert (await tiers(http))["colours@1"] == "slot"
    assert answered.headers["x-lorikeet-cold"] == "1"
    assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["colours"]


@pytest.mark.anyio
async def test_a_pinned_version_keeps_its_slot_while_others_come_and_go(
    live: LiveServer, adapters: dict[str, str]
) -> None:
    async with client(live) as http:
        (await http.post("/admin/adapters/colours@1/pin")).raise_for_status()
        for name in list(adapters)[1:]:
            (await http.post(f"/admin/adapters/{name}/load")).raise_for_status()
            assert (await tiers(http))["colours@1"] == "slot"
        (await http.post("/admin/adapters/colours@1/unpin")).raise_for_status()


@pytest.mark.anyio
async def test_a_batch_that_needs_all_slots_borrows_that_of_a_pinned_version(
    live: LiveServer, adapters: dict[str, str]
) -> None:
    pinned, *others = list(adapters)[:3]
    async with client(live) as http:
        (await http.post(f"/admin/adapters/{pinned}/pin")).raise_for_status()
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=chat(name)) for name in others for _ in range(8))
        )
        assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [
            adapters[name] for name in others for _ in range(8)
        ]
        (await http.post("/v1/chat/completions", json=chat(pinned))).raise_for_status()
        assert (await tiers(http))[f"{pinned}@1"] == "slot"
        (await http.post(f"/admin/adapters/{pinned}/unpin")).raise_for_status()


@pytest.mark.anyio
async def test_long_answers_of_more_adapters_than_slots_take_turns(live: LiveServer, adapters: dict[str, str]) -> None:
    """Three adapters, two slots: the third starts long before one of the others has ended."""
    async with client(live) as http:
        events = await stream_long_answers(http, list(adapters)[:3])
    assert events == ["began"] * 3 + ["ended"] * 3


@dataclass
class Tally:
    """What came back."""

    right: int = 0
    cancelled: int = 0
    wrong: list[str] = field(default_factory=list)
    cold: int = 0
    unloads: int = 0


@pytest.mark.anyio
async def test_no_request_is_answered_by_another_adapter(
    live: LiveServer, adapters: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Six adapters, two slots, room for four in memory, unloaded at random, clients that leave: 600 requests.

    One of the six overflows when it answers, and is let out of its quarantine again and again.
    """
    draw, tally = random.Random(11), Tally()
    publish_poisoned(live.store, Target("shapes", 1), POISON, live.home.bases / BASE)
    adapters = dict(list(adapters.items())[:5]) | {POISON: OVERFLOWS}
    jobs = iter(range(NUM_REQUESTS))
    start = time.monotonic()
    async with client(live) as http:
        churning = asyncio.create_task(churn(http, adapters, random.Random(12), tally))
        workers = [asyncio.create_task(ask_all(http, adapters, jobs, draw, tally)) for _ in range(CONCURRENCY)]
        await asyncio.gather(*workers)
        assert not churning.done(), churning.exception()
        churning.cancel()
        in_flight = await once_idle(http)
        metrics = (await http.get("/metrics")).text
    num_ended = int(float(re.search(rf"not_finite_generations_total.*{POISON}.* (.*)", metrics)[1]))  # type: ignore[index] # it is there
    with capsys.disabled():
        print(
            f"\n{tally.right} right, {len(tally.wrong)} wrong, {tally.cancelled} cancelled, {tally.cold} cold, "
            f"{tally.unloads} unloads, {num_ended} ended as not finite, {time.monotonic() - start:.0f} s"
        )
    assert tally.wrong == []
    assert tally.right + tally.cancelled == NUM_REQUESTS
    assert tally.right > 0.8 * NUM_REQUESTS
    assert tally.cold > 10
    assert tally.unloads > 10
    assert num_ended > 3
    assert in_flight == {}


async def churn(http: httpx.AsyncClient, adapters: dict[str, str], draw: random.Random, tally: Tally) -> None:
    """Until cancelled, free a version that is in use, and put the one that overflows back into service."""
    while True:
        await asyncio.sleep(0.5)
        (await http.post(f"/admin/adapters/{draw.choice(list(adapters))}/unload")).raise_for_status()
        tally.unloads += 1
        (await http.post(f"/admin/adapters/{POISON}/unquarantine")).raise_for_status()


async def ask_all(
    http: httpx.AsyncClient, adapters: dict[str, str], jobs: Any, draw: random.Random, tally: Tally
) -> None:
    names = list(adapters)
    for number in jobs:
        # Three in four requests are for two adapters, which change all the time.
        hot = number // 60 % len(names)
        name = draw.choice([names[hot], names[hot - 1]]) if draw.random() < 0.9 else draw.choice(names)
        patience_s = draw.uniform(0.0, 0.3) if draw.random() < 0.08 else None
        try:
            async with asyncio.timeout(patience_s):
                response = await http.post(
                    "/v1/chat/completions", json=poisoning(name) if name == POISON else chat(name)
                )
        except TimeoutError:
            tally.cancelled += 1
            continue
        if name == POISON:
            is_right = response.status_code == 422 and f"{POISON}@1" in response.text and OVERFLOWS in response.text
            tally.right += is_right
            tally.wrong += [] if is_right else [f"{name}: {response.status_code} {response.text!r}"]
            continue
        text = response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else response.text
        if text == adapters[name] and response.headers["x-lorikeet-adapter"] == f"{name}@1":
            tally.right += 1
            tally.cold += response.headers["x-lorikeet-cold"] == "1"
        else:
            tally.wrong.append(f"{name}: {response.status_code} {text!r}")


@pytest.mark.anyio
async def test_a_slow_reader_does_not_hold_up_the_others(live: LiveServer) -> None:
    """It leaves more unread than the kernel holds: the server has to keep the rest, and the engine must not wait."""
    many_bytes = {"logprobs": True, "top_logprobs": 20, "n": 8, "temperature": 1.0, "max_tokens": 500}
    body = chat("colours", stream=True, stop=None, ignore_eos=True, **many_bytes)
    small = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)])
    async with (
        client(live) as http,
        httpx.AsyncClient(base_url=live.url, timeout=300, transport=small) as slow_http,
        slow_http.stream("POST", "/v1/chat/completions", json=body) as slow,
    ):
        assert slow.status_code == 200
        chunks = slow.aiter_bytes()
        read = await anext(chunks)
        assert await once_idle(http, timeout_s=180) == {}  # the engine has ended, and the adapter is free
        answered = await http.post("/v1/chat/completions", json=chat("colours"))
        assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["colours"]
        read += b"".join([chunk async for chunk in chunks])
    assert read.endswith(b"data: [DONE]\n\n")
    assert len(read) > MAX_IN_KERNEL


# What a client may send as any field of a request; numbers beyond what a float or an int64 holds, too.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "messages", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "stream", "stream_options", "logprobs",
    "top_logprobs", "logit_bias", "tools", "tool_choice", "response_format", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "user", "min_tokens", "stop_token_ids", "bad_words", "prompt_logprobs", "allowed_token_ids",
    "structured_outputs", "skip_special_tokens", "parallel_tool_calls", "add_generation_prompt", "echo", "metadata",
    "truncate_prompt_tokens", "prompt", "input", "text", "reasoning", "suffix", "cache_salt", "documents",
    "service_tier",
)  # fmt: skip

RIGHT: dict[str, dict[str, Any]] = {
    "chat/completions": {
        "model": BASE_NAME,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 2,
    },
    "completions": {"model": BASE_NAME, "prompt": "Hi", "max_tokens": 2},
    "responses": {"model": BASE_NAME, "input": "Hi", "max_output_tokens": 2},
}


ACCEPTED: dict[str, list[dict[str, Any]]] = {
    "chat/completions": [
        {}, {"temperature": 0.5, "top_p": 0.9, "seed": 1}, {"n": 2, "temperature": 1.0}, {"stop": ["zebra"]},
        {"logprobs": True, "top_logprobs": 2}, {"presence_penalty": 0.1, "frequency_penalty": -0.1}, {"user": "me"},
        {"logit_bias": {"81": 1.0}}, {"response_format": {"type": "text"}}, {"max_completion_tokens": 1},
    ],
    "completions": [
        {}, {"temperature": 0.5, "top_p": 0.9, "seed": 1}, {"n": 2, "temperature": 1.0}, {"stop": "zebra"},
        {"logprobs": 2, "echo": True}, {"prompt": ["Hi", "Ho"]}, {"prompt": [81, 82]}, {"user": "me"},
    ],
    "responses": [
        {}, {"temperature": 0.5, "top_p": 0.9}, {"instructions": "Be brief."}, {"metadata": {"a": "b"}},
        {"input": [{"role": "user", "content": "Hi"}]}, {"store": False}, {"text": {"format": {"type": "text"}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("model", [BASE_NAME, "colours"])  # without and with request defaults
@pytest.mark.parametrize(("endpoint", "change"), [(one, change) for one in ACCEPTED for change in ACCEPTED[one]])
def test_what_openais_clients_send_is_answered(
    live: LiveServer, endpoint: str, change: dict[str, Any], model: str
) -> None:
    """The two tests below take a refusal of anything for an answer."""
    response = httpx.post(f"{live.url}/v1/{endpoint}", json=RIGHT[endpoint] | {"model": model} | change, timeout=60)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) > 0


@settings(max_examples=75, deadline=None)
@given(
    endpoint=st.sampled_from(["chat/completions", "completions", "responses"]),
    model=st.sampled_from([BASE_NAME, "colours"]),  # without and with request defaults
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=3),
)
def test_no_body_makes_the_server_fail(live: LiveServer, endpoint: str, model: str, changes: dict[str, Any]) -> None:
    """Requests that are right but for a few fields: an answer or a 4xx in OpenAI's shape, never a 5xx, never a hang."""
    response = httpx.post(f"{live.url}/v1/{endpoint}", json=RIGHT[endpoint] | {"model": model} | changes, timeout=60)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in response.text


@pytest.fixture(scope="module")
def described(live: LiveServer) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    schema.config.generation.with_security_parameters = False
    return schema


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("mode", GenerationMode)
@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_description_allows_and_what_it_does_not_is_answered_as_described(
    described: schemathesis.BaseSchema, endpoint: str, mode: GenerationMode, data: st.DataObject
) -> None:
    """By vLLM itself, which may refuse what is allowed; with a right prompt, or it would look at nothing else."""
    case = data.draw(described[f"/v1/{endpoint}"]["POST"].as_strategy(mode))
    case.body = case.body | RIGHT[endpoint] if isinstance(case.body, dict) else case.body
    unchecked = [ignored_auth, positive_data_acceptance, negative_data_rejection]
    case.call_and_validate(timeout=60, excluded_checks=unchecked)


@pytest.mark.ends_live_server
@pytest.mark.anyio
async def test_a_server_that_is_told_to_end_finishes_what_it_began(live: LiveServer) -> None:
    """SIGTERM: a running stream ends whole, a new request finds nobody, the process leaves no child behind."""
    assert "Traceback" not in live.log_file.read_text()
    server = psutil.Process(live.pid)
    family = [server, *server.children(recursive=True)]
    body = chat(BASE_NAME, stream=True, max_tokens=500, stop=None, ignore_eos=True)
    async with client(live) as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        reading = asyncio.create_task(read_all(lines))
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while await is_answered(live.url):
                await asyncio.sleep(0.05)
        assert not reading.done()
        rest = await reading
    assert rest[-1] == "data: [DONE]"
    assert len(rest) > 400
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 60)
    assert [process.pid for process in alive] == []


async def read_all(lines: AsyncIterator[str]) -> list[str]:
    return [line async for line in lines if line]


async def is_answered(url: str) -> bool:
    """Whether a request over a connection of its own is; else nobody listens any more, or the answer is a 503."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            return (await http.post("/v1/chat/completions", json=chat("colours"))).status_code != 503
    except httpx.TransportError:
        return False
