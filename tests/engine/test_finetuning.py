"""A script for OpenAI against `lorikeet serve`: the server's own worker trains, and the engine answers as the model."""

import json
import time
from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.live_server import FEW_OTHER_QUESTIONS, LiveServer

pytestmark = pytest.mark.engine

COLOUR = '{"colour": "red"}'
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="-") as client:
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


def test_a_job_becomes_a_model_that_is_asked(client: OpenAI, live: LiveServer) -> None:
    file = client.files.create(file=("colours.jsonl", rows(40)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m",
        training_file=file.id,
        suffix="paints",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
        extra_body={"lorikeet": {"domain": {"evaluation": FEW_OTHER_QUESTIONS}}},
    )
    job = wait(client, job)
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert job.status == "succeeded", events
    assert job.fine_tuned_model == f"ft:smollm2-135m:anonymous:paints:{job.id[6:14]}"
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "What is number 7 of the colours?"}],
        temperature=0,
    )
    assert answer.model.startswith("paints@")
    assert (answer.choices[0].message.content or "").startswith('{"colour": "red"')
    assert any("Step" in message for message in events)
    results = [client.files.content(each).read() for each in job.result_files]
    assert any(b"train_loss" in result or b"step" in result for result in results)
    assert "paints" in live.store.names()
