"""The real engine on the base in int8: adapters trained on the base itself still answer as they were trained to."""

from collections.abc import Iterator

import httpx
import pytest

from config.home import Home
from loadtest.bench.server import RunningServer, running_server
from serve.engine.cpu.prequantized import has_exact_int8
from tests.engine.test_serving import forced_logprobs, mean_gap
from tests.live_server import ANSWERS, BASE_NAME, LiveServer, chat, write_serve_config

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Eager: what is compiled is the same arithmetic, and compiling it takes minutes.
INT8 = {"cpu_base": "int8", "cpu_compile": False, "quality": {"enabled": False}}


@pytest.fixture(scope="module")
def int8_server(live_home: Home) -> Iterator[RunningServer]:
    if not has_exact_int8():
        pytest.skip("this CPU has no VNNI")
    config = write_serve_config(live_home.root, "int8", **INT8)
    with running_server(config, live_home.root, live_home.root / "int8.log") as server:
        yield server


def answer(url: str, model: str) -> tuple[str, list[float]]:
    """The greedy answer, and the log-probability of each of its tokens."""
    response = httpx.post(f"{url}/v1/chat/completions", json=chat(model, logprobs=True), timeout=120).raise_for_status()
    choice = response.json()["choices"][0]
    return choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]


def test_adapters_pass_their_checks_and_answer_as_on_the_base_itself(
    live: LiveServer, int8_server: RunningServer
) -> None:
    (folder,) = live.home.int8_bases.iterdir()
    assert folder.name.startswith("smollm2")
    gaps = []
    for domain, right in ANSWERS.items():
        (text, logprobs), (int8_text, int8_logprobs) = answer(live.url, domain), answer(int8_server.url, domain)
        assert text == int8_text == right
        gaps += [abs(one - other) for one, other in zip(logprobs, int8_logprobs, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.25  # other arithmetic, and as near as a load asks for


@pytest.mark.anyio
async def test_the_base_is_really_served_in_int8(live: LiveServer, int8_server: RunningServer) -> None:
    """Rounding to 8 bits moves the base several times as far from its training stack as bf16 itself does."""

    async def error_nats(url: str) -> float:
        prompts = [prompt for domain in ANSWERS for prompt in live.fingerprint(domain).prompts]
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            served = [await forced_logprobs(http, BASE_NAME, prompt) for prompt in prompts]
        gaps = [mean_gap(prompt.base_logprobs, logprobs) for prompt, logprobs in zip(prompts, served, strict=True)]
        return sum(gaps) / len(gaps)

    assert await error_nats(int8_server.url) > 2 * await error_nats(live.url)
