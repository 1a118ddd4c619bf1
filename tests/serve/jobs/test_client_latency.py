"""What a training is told of clients' latency."""

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.jobs.pressure import Pressure
from adapters.store.store import AdapterStore
from serve.jobs.client_latency import ClientLatency
from serve.records import Source
from tests.clock import FakeClock
from tests.generations import generation
from tests.jobs_serving import FakeWorker, chat_rows, make_jobs_serving
from tests.serving import BASE_NAME, Serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    return make_jobs_serving(tmp_path, store, base_folder)


async def begin_job(serving: Serving) -> None:
    async with serving.client() as client:
        form = {"file": ("a.jsonl", chat_rows())}
        file = (await client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)).json()["id"]
        job = (await client.post("/v1/fine_tuning/jobs", json={"model": BASE_NAME, "training_file": file})).json()
    FakeWorker(serving).begin(job["id"])


def answer(latency: ClientLatency, gap_s: float, num: int, source: Source = "client") -> None:
    latency.generation_finished(replace(generation(), source=source, itl_s=(gap_s,) * num))


async def test_slower_answers_beside_a_training_are_told(serving: Serving) -> None:
    assert serving.jobs is not None
    clock = FakeClock()
    latency, pressure = ClientLatency(serving.jobs, clock=clock), Pressure(serving.jobs.database)
    answer(latency, 0.02, 300)
    await latency._look()
    assert pressure.read() == 1.0
    await begin_job(serving)
    await latency._look()
    answer(latency, 0.06, 30)
    answer(latency, 9.0, 30, source="monitor")
    await latency._look()
    assert pressure.read() == pytest.approx(3.0)
    clock.now_s += 11
    await latency._look()
    assert pressure.read() == 1.0


@pytest.mark.slow
async def test_a_server_that_has_seen_no_quiet_time_says_nothing(serving: Serving) -> None:
    assert serving.jobs is not None
    latency = ClientLatency(serving.jobs)
    await begin_job(serving)
    await latency._look()
    answer(latency, 0.06, 300)
    assert latency.ratio() == 1.0
