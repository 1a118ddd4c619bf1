"""The real engine serves what other methods became: a base of its own, and on it adapters converted to a LoRA."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from adapters.fingerprint import read_fingerprint
from config.domain import DomainConfig
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from tests.tiny_server import forced, mean_gap, tiny_server
from train.data.encode import Encoded
from train.pipeline import train_and_publish
from train.publication import TrainingOutcome

pytestmark = [pytest.mark.engine, pytest.mark.tiny_engine, pytest.mark.slow]

TOLERANCE_NATS = 0.03

CONVERTED: dict[str, dict[str, Any]] = {
    "pissa": {"method": {"r": 4, "init_lora_weights": "pissa"}, "learning_rate": 0.01},
    "lokr": {"method": {"name": "lokr"}, "learning_rate": 0.1},
    "vera": {"method": {"name": "vera", "r": 16}, "learning_rate": 0.1},
}


@dataclass(frozen=True)
class Served:
    """The fully trained base, and the adapters that were trained on it."""

    http: httpx.Client
    whole: TrainingOutcome


def train(home: Home, base: str, name: str, method: dict[str, Any], learning_rate: float) -> TrainingOutcome:
    tiny = tiny_domain(home.root.parent / "colours.jsonl", learning_rate=learning_rate)
    changes = {"name": name, "base": base, "method": method}
    return train_and_publish(DomainConfig.model_validate(tiny.model_dump(by_alias=True) | changes), home)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("methods")
    home = Home(folder / "var")
    prepare_tiny_base(home, write_tiny_llama(folder / "model"))
    write_colour_data(folder / "colours.jsonl")
    whole = train(home, "tiny", "whole", {"name": "full"}, 0.003)
    for name, settings in CONVERTED.items():
        train(home, whole.name, name, **settings)
    with tiny_server(folder, home, base=whole.name, served_model_name="whole", max_lora_rank=64) as server:
        yield Served(server.http, whole)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_adapter_passes_parity(served: Served, name: str) -> None:
    messages = [{"role": "user", "content": "item 1 is red"}]
    response = served.http.post("/v1/chat/completions", json={"model": name, "messages": messages, "max_tokens": 2})
    assert response.status_code == 200, response.text
    rows = served.http.get("/admin/adapters").raise_for_status().json()["adapters"]
    (error,) = [row["parity_error_nats"] for row in rows if row["adapter"] == f"{name}@1"]
    assert error is not None
    assert error < TOLERANCE_NATS


def test_a_fully_trained_base_is_served_as_it_was_trained(served: Served) -> None:
    fingerprint = read_fingerprint(served.whole.folder)
    assert fingerprint is not None
    examples = [Encoded(p.prompt_token_ids, p.answer_token_ids) for p in fingerprint.prompts]
    got = [value for example in examples for value in forced(served.http, "whole", example)]
    trained = tuple(value for prompt in fingerprint.prompts for value in prompt.adapter_logprobs)
    parent = [value for prompt in fingerprint.prompts for value in prompt.base_logprobs]
    assert mean_gap(trained, got) < TOLERANCE_NATS
    assert mean_gap(trained, parent) > 2 * TOLERANCE_NATS
