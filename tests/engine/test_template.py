"""The real engine on a base whose template takes no system prompt and writes the date.

A server renders what training did, on another day: with the date of today.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime

import httpx
import pytest
from transformers import AutoTokenizer

from adapters.store.manifest import Manifest
from config.dataset import Message
from config.home import Home
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import CHAT_TEMPLATE, tiny_domain, tiny_tokenizer, write_colour_data
from tests.tiny_server import tiny_server
from train.base.prepare import prepare_base
from train.data.encode import encode_prompt
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.tiny_engine, pytest.mark.slow]

STRICT = (
    "{{ raise_exception('no system role') if messages[0].role == 'system' }}"
    "<|im_start|>Date: {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + CHAT_TEMPLATE
)
TRAINED_ON = date(2020, 2, 29)
QUESTION = {"role": "user", "content": "item 1 is red"}


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
    domain = tiny_domain(write_colour_data(folder / "colours.jsonl"))
    outcome = train_and_publish(domain, home, today=lambda: TRAINED_ON)
    with tiny_server(folder, home) as server:
        yield Served(server.http, outcome.manifest, home)


def test_a_version_names_what_was_changed_in_the_template(served: Served) -> None:
    assert served.manifest.base.template_changes == ("system_in_user",)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Which one?"}]])
def test_a_server_renders_what_training_did_with_the_date_of_today(
    served: Served, system: list[dict[str, str]]
) -> None:
    body = {"model": "colours", "messages": [*system, QUESTION], "return_token_ids": True, "max_tokens": 4}
    moments = [datetime.now().astimezone()]
    response = served.http.post("/v1/chat/completions", json=body)
    moments.append(datetime.now().astimezone())  # midnight may have passed
    assert response.status_code == 200, response.text
    turns = [*(system or [{"role": "system", "content": "Colour?"}]), QUESTION]
    sent = [Message.model_validate(turn) for turn in turns]
    tokenizer = AutoTokenizer.from_pretrained(served.home.bases / "tiny")
    prompt = response.json()["prompt_token_ids"]
    assert prompt in [list(encode_prompt(tokenizer, sent, moment)) for moment in moments]
    shown = tiny_tokenizer().decode(prompt)
    assert any(f"Date: {moment:%d %B %Y}" in shown for moment in moments)


def test_the_version_of_years_ago_passes_its_fingerprint(served: Served) -> None:
    served.http.post("/admin/adapters/colours/load").raise_for_status()
    rows = served.http.get("/admin/adapters").raise_for_status().json()["adapters"]
    assert rows[0]["parity_error_nats"] < 0.1
