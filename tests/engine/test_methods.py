"""The real engine serves what other methods became: converted to a LoRA, or a base of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.fingerprint import read_fingerprint
from config.domain import DomainConfig
from config.home import Home
from loadtest.bench.server import running_server
from tests.engine.test_architectures import forced, mean_gap, write_config
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.data.encode import Encoded
from train.pipeline import train_and_publish
from train.publication import TrainingOutcome

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOLERANCE_NATS = 0.03

CONVERTED: dict[str, dict[str, Any]] = {
    "pissa": {"method": {"r": 4, "init_lora_weights": "pissa"}, "learning_rate": 0.01},
    "lokr": {"method": {"name": "lokr"}, "learning_rate": 0.1},
    "vera": {"method": {"name": "vera", "r": 16}, "learning_rate": 0.1},
}


def train(folder: Path, name: str, method: dict[str, Any], learning_rate: float) -> TrainingOutcome:
    tiny = tiny_domain(folder / "colours.jsonl", learning_rate=learning_rate)
    config = DomainConfig.model_validate(tiny.model_dump(by_alias=True) | {"name": name, "method": method})
    return train_and_publish(config, Home(folder / "var"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    prepare_tiny_base(Home(folder / "var"), write_tiny_llama(folder / "model"))
    write_colour_data(folder / "colours.jsonl")
    return folder


@pytest.fixture(scope="module")
def converted(folder: Path) -> Iterator[httpx.Client]:
    for name, settings in CONVERTED.items():
        train(folder, name, **settings)
    config = write_config(folder, max_lora_rank=64)
    with (
        running_server(config, folder / "var", folder / "serve.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        yield http


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_adapter_passes_parity(converted: httpx.Client, folder: Path, name: str) -> None:
    messages = [{"role": "user", "content": "item 1 is red"}]
    response = converted.post("/v1/chat/completions", json={"model": name, "messages": messages, "max_tokens": 2})
    assert response.status_code == 200, response.text
    rows = converted.get("/admin/adapters").raise_for_status().json()["adapters"]
    (error,) = [row["parity_error_nats"] for row in rows if row["adapter"] == f"{name}@1"]
    assert error is not None
    assert error < TOLERANCE_NATS


def test_a_fully_trained_base_is_served_as_it_was_trained(folder: Path) -> None:
    outcome = train(folder, "whole", {"name": "full"}, 0.003)
    fingerprint = read_fingerprint(outcome.folder)
    assert fingerprint is not None
    config = write_config(folder, base=outcome.name, served_model_name="whole")
    with (
        running_server(config, folder / "var", folder / "full.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        examples = [Encoded(p.prompt_token_ids, p.answer_token_ids) for p in fingerprint.prompts]
        served = [value for example in examples for value in forced(http, "whole", example)]
    trained = tuple(value for prompt in fingerprint.prompts for value in prompt.adapter_logprobs)
    parent = [value for prompt in fingerprint.prompts for value in prompt.base_logprobs]
    assert mean_gap(trained, served) < TOLERANCE_NATS
    assert mean_gap(trained, parent) > 2 * TOLERANCE_NATS
