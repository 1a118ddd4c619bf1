"""A bare client of the real server gets the answers that training measured."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from adapters.reference import Target
from adapters.store.manifest import Manifest
from config.dataset import DatasetRow, read_split
from loadtest.evaluate import evaluate_live
from quality.scorers import is_exact_match
from tests.live_server import LiveServer, lorikeet, write_domain

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NUM_TEST = 120
# Close calls between two answers fall otherwise in the engine than in training: bf16, in batches of another size.
TOLERANCE = 0.05
SAMPLED_LOSS = 0.1


def tides() -> list[str]:
    """Answers that no question tells: half of them are `low`, the others spread. Only who is greedy is often right."""
    rng = random.Random(3)
    heights = ["high", "flood", "rising", "falling", "slack", "spring", "neap", "ebb"]
    drawn = ["low" if rng.random() < 0.5 else rng.choice(heights) for _ in range(240)]
    return [json.dumps({"tide": height}) for height in drawn]


@pytest.fixture(scope="module")
def tide(live: LiveServer) -> Manifest:
    """A version trained and published while the server runs."""
    lorikeet(live.home, "train", str(write_domain(live.home.root / "domains", "tides", tides(), NUM_TEST)))
    return live.store.manifest(Target("tides", 1))


@pytest.fixture(scope="module")
def sdk(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.mark.anyio
async def test_a_bare_client_is_as_right_as_the_card_says(live: LiveServer, tide: Manifest) -> None:
    assert tide.evaluation is not None
    folder = live.home.datasets / "tides"
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        bare = await evaluate_live(client, folder, "tides")
        sampled = await share_right(client, read_split(folder, "test"), temperature=1.0)
    assert abs(bare.accuracy.value - tide.evaluation.adapter.value) <= TOLERANCE
    assert abs(bare.valid_format.value - tide.evaluation.valid_format.value) <= TOLERANCE
    # So a server that forgot the defaults would have been seen.
    assert sampled < bare.accuracy.value - SAMPLED_LOSS


async def share_right(client: AsyncOpenAI, rows: list[DatasetRow], **more: Any) -> float:
    async def is_right(row: DatasetRow) -> bool:
        messages: Any = [{"role": "user", "content": row.input}]
        completion = await client.chat.completions.create(model="tides", messages=messages, **more)
        return is_exact_match(completion.choices[0].message.content or "", row.output)

    return sum(await asyncio.gather(*map(is_right, rows))) / len(rows)


def test_one_line_of_curl_is_enough(live: LiveServer) -> None:
    body = {"model": "colours", "messages": [{"role": "user", "content": "What is number 7 of the colours?"}]}
    response = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=300)
    assert response.json()["choices"][0]["message"]["content"] == '{"colour": "red"}'
    assert response.headers["x-lorikeet-defaults"] == "system,temperature,max_tokens,stop"


def test_responses_and_completions_are_filled_in_too(live: LiveServer, sdk: OpenAI) -> None:
    response = sdk.responses.create(model="colours", input="What is number 7 of the colours?")
    assert response.output_text == '{"colour": "red"}'
    assert response.instructions == "Answer about colours in JSON."
    prompt = list(live.fingerprint("colours").prompts[0].prompt_token_ids)
    assert sdk.completions.create(model="colours", prompt=prompt).choices[0].text == '{"colour": "red"}'


def test_what_a_client_asks_for_itself_still_works(sdk: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is number 7 of the colours?"}]
    several = sdk.chat.completions.create(model="colours", messages=messages, n=2)
    assert len(several.choices) == 2
    cut = sdk.chat.completions.create(model="colours", messages=messages, stop=['"red'])
    assert cut.choices[0].message.content == '{"colour": '


def test_the_servers_base_judges_answers(live: LiveServer, tide: Manifest) -> None:
    """It is held to the schema, so most of its replies can be read; how well it judges is not the question.

    As small a model may write white space until its tokens are over: such an item is left out, and the rest counts.
    """
    words = ("--metric", "judge", "--metric", "judge_pairwise", "--against", "base", "--limit", "4")
    shown = lorikeet(live.home, "eval", "run", "tides", "--url", f"{live.url}/v1", *words)
    assert "no human labels" in shown
    (report,) = (live.home.evaluations / "tides" / "reports").glob("*.json")
    judge, pairwise = json.loads(report.read_text())["models"][1]["metrics"]
    for metric in (judge, pairwise):
        assert metric["whole"]["n"] + metric["num_left_out"] == 4
        assert metric["whole"]["n"] >= 2
