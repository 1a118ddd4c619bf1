"""The real engine on a base whose template writes the date: a version of years ago loads, and requests get today."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import httpx
import pytest

from config.home import Home
from loadtest.bench.server import running_server
from tests.engine.test_architectures import write_config
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import DATED_TEMPLATE, tiny_domain, tiny_tokenizer, write_colour_data
from train.base.prepare import prepare_base
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRAINED_ON = date(2020, 2, 29)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("midnight")
    home, template = Home(folder / "var"), folder / "dated.jinja"
    template.write_text(DATED_TEMPLATE)
    prepare_base(str(write_tiny_model(folder / "model", "llama")), "tiny", "nf4", home=home, chat_template=template)
    train_and_publish(tiny_domain(write_colour_data(folder / "colours.jsonl")), home, today=lambda: TRAINED_ON)
    with (
        running_server(write_config(folder), home.root, folder / "serve.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        yield http


def test_a_version_of_another_day_answers_with_the_date_of_today(served: httpx.Client) -> None:
    before = datetime.now(UTC)
    body = {"model": "colours", "messages": [{"role": "user", "content": "item 1 is red"}], "return_token_ids": True}
    response = served.post("/v1/chat/completions", json=body | {"max_tokens": 4})
    assert response.status_code == 200, response.text
    prompt = tiny_tokenizer().decode(response.json()["prompt_token_ids"])
    assert any(f"Date: {moment.astimezone():%d %B %Y}" in prompt for moment in (before, datetime.now(UTC)))
    rows = served.get("/admin/adapters").raise_for_status().json()["adapters"]
    assert rows[0]["parity_error_nats"] < 0.1
