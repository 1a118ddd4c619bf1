"""A script for OpenAI against `lorikeet serve`: the server's own worker trains, and the engine answers as the model."""

import json
import time
from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import lorikeet, write_serve_config

pytestmark = pytest.mark.engine

COLOUR = '{"colour": "red"}'
TIMEOUT_S = 420


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("finetuning"))
    lorikeet(home, "base", "prepare", "smollm2-135m", "--quantization", "nf4")
    return home


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[OpenAI]:
    config = write_serve_config(home.root, jobs={})
    with (
        running_server(config, home.root, home.root / "serve.log") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="-") as client,
    ):
        yield client


def rows(num: int) -> bytes:
    turns = [
        [{"role": "user", "content": f"What is number {n} of the colours?"}, {"role": "assistant", "content": COLOUR}]
        for n in range(num)
    ]
    return "".join(json.dumps({"messages": each}) + "\n" for each in turns).encode()


def wait(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    deadline = time.monotonic() + TIMEOUT_S
    while job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < deadline:
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def test_a_job_becomes_a_model_that_is_asked(client: OpenAI, home: Home) -> None:
    file = client.files.create(file=("colours.jsonl", rows(40)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m",
        training_file=file.id,
        suffix="colours",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
    )
    job = wait(client, job)
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert job.status == "succeeded", events
    assert job.fine_tuned_model == f"ft:smollm2-135m:anonymous:colours:{job.id[6:14]}"
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "What is number 7 of the colours?"}],
        temperature=0,
    )
    assert answer.model.startswith("colours@")
    assert (answer.choices[0].message.content or "").startswith('{"colour": "red"')
    assert any("Step" in message for message in events)
    results = [client.files.content(each).read() for each in job.result_files]
    assert any(b"train_loss" in result or b"step" in result for result in results)
    assert AdapterStore(home.adapters).names() == ["colours"]
