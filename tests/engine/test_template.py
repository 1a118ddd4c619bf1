"""The real engine on a base whose template has no system role: a server renders what training did."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from transformers import AutoTokenizer

from adapters.store.manifest import Manifest
from config.dataset import Message
from config.home import Home
from loadtest.bench.server import running_server
from tests.engine.test_architectures import write_config
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import CHAT_TEMPLATE, RENDERED_AT, tiny_domain, write_colour_data
from train.base.prepare import prepare_base
from train.data.encode import encode_prompt
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.slow]

STRICT = "{{ raise_exception('no system role') if messages[0].role == 'system' }}" + CHAT_TEMPLATE


@dataclass(frozen=True)
class Served:
    http: httpx.Client
    manifest: Manifest
    home: Home


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("template")
    home, template = Home(folder / "var"), folder / "strict.jinja"
    template.write_text(STRICT)
    prepare_base(str(write_tiny_model(folder / "model", "llama")), "tiny", "nf4", home=home, chat_template=template)
    outcome = train_and_publish(tiny_domain(write_colour_data(folder / "colours.jsonl")), home)
    with (
        running_server(write_config(folder), home.root, folder / "serve.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        yield Served(http, outcome.manifest, home)


def test_a_version_names_what_was_changed_in_the_template(served: Served) -> None:
    assert served.manifest.base.template_changes == ("system_in_user",)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Which one?"}]])
def test_a_server_renders_a_system_prompt_as_training_did(served: Served, system: list[dict[str, str]]) -> None:
    turns = [{"role": "user", "content": "item 1 is red"}]
    body = {"model": "colours", "messages": system + turns, "return_token_ids": True, "max_tokens": 4}
    response = served.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    sent = [Message.model_validate(turn) for turn in (system or [{"role": "system", "content": "Colour?"}]) + turns]
    tokenizer = AutoTokenizer.from_pretrained(served.home.bases / "tiny")
    assert response.json()["prompt_token_ids"] == list(encode_prompt(tokenizer, sent, RENDERED_AT))


def test_the_version_passes_its_fingerprint(served: Served) -> None:
    rows = served.http.get("/admin/adapters").raise_for_status().json()["adapters"]
    assert rows[0]["parity_error_nats"] < 0.1
