"""Stop strings that name nothing stop nothing, and responses that are not kept are not looked for."""

from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from adapters.store.manifest import RequestDefaults
from serve.limits.stops import without_empty_stops
from tests.serving import BASE_NAME, Serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("", None),
        ([""], None),
        ([None], None),
        ([None, ""], None),
        (["", "}"], ["}"]),
        (["}", None, "\n"], ["}", "\n"]),
        ([" "], [" "]),
        (" ", " "),
        ([], []),
        (None, None),
        (7, 7),
        (["", 7], [7]),
    ],
)
def test_empty_strings_and_null_are_no_stop_strings(stop: Any, left: Any) -> None:
    assert ({"stop": stop} | without_empty_stops({"stop": stop}))["stop"] == left


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("stop", ["", ["", None, "", "", "", ""]])
async def test_an_empty_stop_is_answered(serving: Serving, endpoint: str, stop: Any) -> None:
    async with serving.client() as client:
        response = await client.post(f"/v1/{endpoint}", json={"model": BASE_NAME, "stop": stop})
    assert (response.status_code, serving.engine.bodies[-1]["stop"]) == (200, None)


async def test_an_empty_stop_counts_as_left_out(serving: Serving) -> None:
    serving.publish("medical", defaults=RequestDefaults(stop=("}",)))
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json={"model": "medical", "messages": [{}], "stop": ""})
    assert serving.engine.bodies[-1]["stop"] == ["}"]


def openai(serving: Serving) -> AsyncOpenAI:
    http_client: Any = httpx.AsyncClient(transport=httpx.ASGITransport(serving.app))
    return AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http_client, max_retries=0)


@pytest.mark.parametrize(
    ("asked", "way_out"),
    [
        ({"previous_response_id": "resp_1"}, "send the earlier turns, questions and answers, in `input` instead"),
        ({"conversation": "conv_1"}, "send the earlier turns in `input` instead"),
        ({"conversation": {"id": "conv_1"}}, "send the earlier turns in `input` instead"),
        ({"background": True}, "set `stream`"),
    ],
)
async def test_what_would_need_a_kept_response_is_refused(
    serving: Serving, asked: dict[str, Any], way_out: str
) -> None:
    async with openai(serving) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.create(model=BASE_NAME, input="Hello", **asked)
    assert refused.value.param == next(iter(asked))
    assert way_out in refused.value.message
    assert serving.engine.bodies == []


async def test_a_response_cannot_be_got_again(serving: Serving) -> None:
    async with openai(serving) as client:
        with pytest.raises(NotFoundError, match="does not store responses") as missing:
            await client.responses.retrieve("resp_1")
    assert missing.value.code == "response_not_found"


@pytest.mark.parametrize("asked", [{"store": True}, {"store": False}, {"background": False}, {"conversation": None}])
async def test_what_clients_send_by_default_is_taken(serving: Serving, asked: dict[str, Any]) -> None:
    async with serving.client() as client:
        response = await client.post("/v1/responses", json={"model": BASE_NAME, "input": "Hello", **asked})
    assert response.status_code == 200
