"""What a request leaves out comes from the version that answers it, and what it holds is never touched."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.store.manifest import RequestDefaults
from adapters.store.store import AdapterStore
from serve.engine.protocol import Endpoint
from serve.limits.defaults import AnswerLengths, fill_defaults
from tests.serving import BASE_NAME, Serving, make_serving

SCHEMA = {"type": "object", "properties": {"chapter": {"type": "string"}}}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "medical", "schema": SCHEMA}}
DEFAULTS = RequestDefaults(
    system="Answer in JSON.", temperature=0.0, top_p=0.9, max_tokens=24, stop=("}",), response_format=FORMAT
)
LENGTHS = AnswerLengths(default=512, most=2048)
USER = {"role": "user", "content": "Angina"}
SYSTEM = {"role": "system", "content": "Answer in JSON."}
STOP = {"stop": ["}"], "include_stop_str_in_output": True}
SAMPLING = {"temperature": 0.0, "top_p": 0.9}
ALL = "system,temperature,top_p,max_tokens,stop,response_format"
ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions", "responses")


def filled(body: dict[str, Any], endpoint: Endpoint = "chat/completions") -> dict[str, Any]:
    return fill_defaults(body, endpoint, DEFAULTS, LENGTHS).body


def names(body: dict[str, Any], endpoint: Endpoint = "chat/completions") -> str:
    return ",".join(fill_defaults(body, endpoint, DEFAULTS, LENGTHS).names)


def test_a_bare_chat_gets_all_that_was_measured() -> None:
    body = {"messages": [USER]}
    want = {"messages": [SYSTEM, USER], "max_tokens": 24, "response_format": FORMAT} | SAMPLING | STOP
    assert filled(body) == want
    assert names(body) == ALL


def test_a_bare_response_gets_the_same_in_its_own_fields() -> None:
    flat = {"type": "json_schema", "name": "medical", "schema": SCHEMA}
    want = {"input": "Angina", "instructions": "Answer in JSON.", "max_output_tokens": 24, "text": {"format": flat}}
    assert filled({"input": "Angina"}, "responses") == want | SAMPLING | STOP
    assert names({"input": "Angina"}, "responses") == ALL


def test_a_bare_completion_gets_all_but_the_system_prompt() -> None:
    want = {"prompt": "Angina", "max_tokens": 24, "response_format": FORMAT} | SAMPLING | STOP
    assert filled({"prompt": "Angina"}, "completions") == want
    assert names({"prompt": "Angina"}, "completions") == ALL.removeprefix("system,")


@pytest.mark.parametrize(
    ("endpoint", "sent", "not_filled"),
    [
        ("chat/completions", {"messages": [SYSTEM | {"content": "Be brief."}, USER]}, "system"),
        ("chat/completions", {"messages": [USER, {"role": "developer", "content": "Be brief."}]}, "system"),
        ("responses", {"instructions": "Be brief."}, "system"),
        ("responses", {"instructions": ""}, "system"),
        ("responses", {"input": [{"role": "developer", "content": "Be brief."}, USER]}, "system"),
        ("chat/completions", {"temperature": 1}, "temperature"),
        ("chat/completions", {"n": 2}, "temperature"),  # vLLM gives one greedy answer, and no more
        ("completions", {"best_of": 2}, "temperature"),
        ("chat/completions", {"top_p": 1.0}, "top_p"),
        ("chat/completions", {"max_tokens": 9}, "max_tokens"),
        ("chat/completions", {"max_completion_tokens": 9}, "max_tokens"),
        ("chat/completions", {"min_tokens": 30}, "max_tokens"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("responses", {"max_output_tokens": 9}, "max_tokens"),
        ("chat/completions", {"stop": ""}, "stop"),
        ("chat/completions", {"stop": []}, "stop"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "max_tokens,stop,response_format"),
        ("chat/completions", {"response_format": {"type": "text"}}, "response_format"),
        ("completions", {"response_format": {"type": "text"}}, "response_format"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "max_tokens,stop,response_format"),
        ("chat/completions", {"structured_outputs": {"regex": "a+"}}, "max_tokens,stop,response_format"),
        ("chat/completions", {"max_tokens": 9, "ignore_eos": True}, "max_tokens,stop,response_format"),
        ("responses", {"text": {"format": {"type": "text"}}}, "response_format"),
        ("responses", {"response_format": {"type": "text"}}, "response_format"),
        ("responses", {"text": {"format": {"type": "json_object"}}}, "max_tokens,stop,response_format"),
    ],
)
def test_what_the_client_sends_wins(endpoint: Endpoint, sent: dict[str, Any], not_filled: str) -> None:
    body = {"messages": [USER], "input": "Angina"} | sent
    left_out = {"completions": "system"}.get(endpoint, "")
    want = [name for name in ALL.split(",") if name not in (*not_filled.split(","), left_out)]
    assert names(body, endpoint).split(",") == want
    assert {name: filled(body, endpoint)[name] for name in sent} == sent


@pytest.mark.parametrize("field", ["temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "tools"])
def test_null_is_left_out(field: str) -> None:
    assert names({"messages": [USER], field: None}) == ALL


def test_the_client_says_whether_stop_strings_stay() -> None:
    assert filled({"messages": [USER], "include_stop_str_in_output": False})["include_stop_str_in_output"] is False
    assert "include_stop_str_in_output" not in filled({"messages": [USER], "stop": ["."]})


def test_a_format_stands_beside_what_else_a_response_says_of_its_text() -> None:
    text = filled({"input": "Angina", "text": {"verbosity": "low"}}, "responses")["text"]
    assert (text["verbosity"], text["format"]["name"]) == ("low", "medical")


@pytest.mark.parametrize("messages", [None, [], "Angina", 7, {"role": "user"}])
def test_what_is_no_conversation_stays_as_it_is(messages: Any) -> None:
    assert filled({"messages": messages})["messages"] == messages


def test_a_length_over_the_servers_limit_is_cut_to_it() -> None:
    body = fill_defaults({"messages": [USER]}, "chat/completions", DEFAULTS, AnswerLengths(default=8, most=16)).body
    assert body["max_tokens"] == 16


@pytest.mark.parametrize("defaults", [None, RequestDefaults(temperature=0.0)])
def test_without_a_length_of_the_version_the_servers_own_counts(defaults: RequestDefaults | None) -> None:
    assert fill_defaults({"messages": [USER]}, "chat/completions", defaults, LENGTHS).body["max_tokens"] == 512


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_TURN = st.fixed_dictionaries({}, optional={"role": st.sampled_from(["system", "developer", "user"]), "content": _JSON})
_FIELDS = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "stop", "text",
    "include_stop_str_in_output", "response_format", "structured_outputs", "tools", "functions", "instructions", "n",
    "best_of", "ignore_eos", "prompt", "model", "user",
)  # fmt: skip
_TURNS = st.lists(_TURN | _JSON, max_size=4) | _JSON
_BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys(_FIELDS, _JSON) | {"messages": _TURNS, "input": _TURNS})


def as_json(value: Any) -> str:
    """Comparable also where it holds NaN."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.slow
@given(
    body=_BODIES,
    endpoint=st.sampled_from(ENDPOINTS),
    left_out=st.sets(st.sampled_from(ALL.split(","))),
)
def test_whatever_a_client_sends_stays_as_it_was(body: dict[str, Any], endpoint: Endpoint, left_out: set[str]) -> None:
    sent = copy.deepcopy(body)
    defaults = RequestDefaults.model_validate({n: v for n, v in DEFAULTS.given.items() if n not in left_out})
    result = fill_defaults(body, endpoint, defaults, LENGTHS)
    assert as_json(body) == as_json(sent)
    assert not left_out.intersection(result.names)
    for field in (field for field, value in sent.items() if value is not None):
        got = result.body[field]
        if field == "messages" and "system" in result.names and endpoint == "chat/completions":
            got = got[1:]
        if field == "text" and "response_format" in result.names and endpoint == "responses":
            got = {name: value for name, value in got.items() if name != "format"}
            sent[field] = {name: value for name, value in sent[field].items() if name != "format"}
        assert as_json(got) == as_json(sent[field])


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_says_which_defaults_it_took(serving: Serving, stream: bool) -> None:
    serving.publish("medical", defaults=DEFAULTS.model_copy(update={"response_format": None}))
    async with serving.client() as client:
        body = {"model": "medical", "messages": [USER], "top_p": 1, "stream": stream}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["x-lorikeet-defaults"] == "system,temperature,max_tokens,stop"
    assert serving.engine.bodies[-1]["messages"] == [SYSTEM, USER]


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("model", ["medical", BASE_NAME])
async def test_without_defaults_nothing_is_filled_or_said(serving: Serving, model: str) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json={"model": model, "messages": [USER]})
    assert "x-lorikeet-defaults" not in response.headers
    sent = serving.engine.bodies[-1]
    assert (sent["messages"], sent["max_tokens"], "temperature" in sent) == ([USER], 512, False)


@pytest.mark.anyio
async def test_a_shadow_copy_gets_the_shadows_own_defaults(serving: Serving) -> None:
    serving.publish("medical", defaults=DEFAULTS)
    serving.publish("medical", promote=False, defaults=RequestDefaults(system="Be brief.", max_tokens=7))
    serving.store.set_aliases("medical", {"canary": 2}, canary_weight=0.0, is_shadow=True)
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json={"model": "medical", "messages": [USER]})
    await serving.parts.shadow.drain()
    answered, copied = serving.engine.bodies
    assert (answered["model"], answered["messages"][0], answered["max_tokens"]) == ("medical@1", SYSTEM, 24)
    assert copied["messages"] == [{"role": "system", "content": "Be brief."}, USER]
    assert (copied["model"], copied["max_tokens"], "stop" in copied) == ("medical@2", 7, False)


@pytest.mark.anyio
async def test_canary_and_stable_fill_in_their_own(serving: Serving) -> None:
    serving.publish("medical", defaults=DEFAULTS)
    serving.publish("medical", promote=False)
    serving.store.set_aliases("medical", {"canary": 2}, canary_weight=1.0)
    async with serving.client() as client:
        for model in ("medical", "medical@stable"):
            await client.post("/v1/chat/completions", json={"model": model, "messages": [USER]})
    assert ["temperature" in body for body in serving.engine.bodies] == [False, True]


@pytest.mark.anyio
async def test_defaults_beyond_the_servers_limits_refuse_the_version(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, limits={"max_schema_depth": 2})
    serving.publish("medical", defaults=DEFAULTS)
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json={"model": "medical", "messages": [USER]})
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert "its request defaults" in message
    assert "`response_format` nests" in message


@pytest.mark.anyio
async def test_a_long_answer_by_default_is_cut_to_the_context(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_model_len=600)
    serving.publish("medical", defaults=RequestDefaults(max_tokens=9000))
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json={"model": "medical", "messages": [USER]})
    assert serving.engine.bodies[-1]["max_tokens"] == 600


@pytest.mark.slow
@pytest.mark.anyio
async def test_model_cards_show_the_defaults(serving: Serving) -> None:
    serving.publish("medical", defaults=RequestDefaults(system="Answer in JSON.", temperature=0.0, stop=("}",)))
    serving.publish("legal")
    async with serving.client() as client:
        one = (await client.get("/v1/models/medical")).json()
        listed = {card["id"]: card["defaults"] for card in (await client.get("/v1/models")).json()["data"]}
    assert one["defaults"] == {"system": "Answer in JSON.", "temperature": 0.0, "stop": ["}"]}
    assert (listed["medical@1"], listed["legal"], listed[BASE_NAME]) == (one["defaults"], None, None)


@pytest.mark.slow
@pytest.mark.anyio
async def test_requests_at_once_fill_in_apart(serving: Serving) -> None:
    serving.publish("medical", defaults=DEFAULTS)
    serving.publish("legal", defaults=RequestDefaults(system="Be brief."))
    async with serving.client() as client:
        await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json={"model": model, "messages": [USER], "user": model})
                for model in ("medical", "legal") * 5
            )
        )
    systems = {(body["user"], body["messages"][0]["content"]) for body in serving.engine.bodies}
    assert systems == {("medical", "Answer in JSON."), ("legal", "Be brief.")}
