"""Metrics of jobs: as the database has them at each scrape, whoever wrote them."""

import time
from pathlib import Path

import pytest

from adapters.jobs.figures import JobFigures, job_figures
from adapters.store.store import AdapterStore
from tests.clock import FakeClock
from tests.jobs_home import JobsHome
from tests.jobs_serving import FakeWorker, chat_rows, make_jobs_serving
from tests.serving import BASE_NAME, Serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    return make_jobs_serving(tmp_path, store, base_folder)


async def submit(serving: Serving) -> str:
    async with serving.client() as client:
        form = {"file": ("a.jsonl", chat_rows())}
        file = (await client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)).json()["id"]
        job = (await client.post("/v1/fine_tuning/jobs", json={"model": BASE_NAME, "training_file": file})).json()
    return str(job["id"])


async def scrape(serving: Serving, prefix: str = "lorikeet_jobs") -> dict[str, float]:
    async with serving.client() as client:
        lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith(prefix))}


def figures_at(serving: Serving, after_s: float) -> JobFigures:
    """As a scrape would find them some time from now."""
    assert serving.jobs is not None
    return job_figures(serving.jobs.database, clock=lambda: time.time() + after_s)


@pytest.mark.slow
async def test_jobs_are_counted_by_status_and_their_tokens_once(serving: Serving) -> None:
    worker = FakeWorker(serving)
    first, second = await submit(serving), await submit(serving)
    worker.train(first)
    found = await scrape(serving)
    assert found['lorikeet_jobs{status="succeeded"}'] == found['lorikeet_jobs{status="validating_files"}'] == 1
    assert found["lorikeet_jobs_trained_tokens_total"] == 300
    worker.train(second)
    assert (await scrape(serving))["lorikeet_jobs_trained_tokens_total"] == 600
    assert (await scrape(serving))["lorikeet_jobs_trained_tokens_total"] == 600


@pytest.mark.slow
async def test_a_queued_and_a_silent_job_grow_old(serving: Serving) -> None:
    worker = FakeWorker(serving)
    running, queued = await submit(serving), await submit(serving)
    worker.begin(running)
    worker.queue.validated(queued)
    figures = figures_at(serving, 100.0)
    assert figures.oldest_queued_s == pytest.approx(100, abs=30)
    assert figures.silent_s == pytest.approx(100, abs=30)
    worker.queue.ask(None, queued, "cancel")
    assert figures_at(serving, 100.0).oldest_queued_s == 0


async def test_a_database_that_cannot_be_read_stops_no_scrape(serving: Serving) -> None:
    assert serving.jobs is not None
    serving.jobs.database.close()
    async with serving.client() as client:
        text = (await client.get("/metrics")).text
    assert "lorikeet_ready" in text


def a_batch(home: JobsHome, num_completed: int, num_failed: int) -> str:
    """One whose lines a server has done so far."""
    batch = home.batch()
    home.batches.claim("s1")
    home.batches.start(batch.id, "s1", 10)
    home.batches.progress(batch.id, "s1", num_completed=num_completed, num_failed=num_failed)
    return batch.id


@pytest.mark.slow
async def test_batches_are_counted_by_status_and_their_lines_once(serving: Serving, tmp_path: Path) -> None:
    with JobsHome(tmp_path / "jobs") as home:
        first, second = a_batch(home, 3, 1), a_batch(home, 2, 0)
        home.batches.finish(first, "s1", "completed")
        found = await scrape(serving, "lorikeet_batch")
        assert found['lorikeet_batches{status="completed"}'] == found['lorikeet_batches{status="in_progress"}'] == 1
        lines = [found[f'lorikeet_batch_lines_total{{result="{result}"}}'] for result in ("completed", "failed")]
        assert lines == [5, 1]
        home.batches.progress(second, "s1", num_completed=6, num_failed=2)
        await scrape(serving, "lorikeet_batch")
        found = await scrape(serving, "lorikeet_batch")
    lines = [found[f'lorikeet_batch_lines_total{{result="{result}"}}'] for result in ("completed", "failed")]
    assert lines == [9, 3]


def test_a_batch_that_no_server_runs_grows_old(serving: Serving, tmp_path: Path) -> None:
    with JobsHome(tmp_path / "jobs", clock=FakeClock(time.time())) as home:
        home.batch()
        assert figures_at(serving, 100.0).batches.oldest_waiting_s == pytest.approx(100, abs=30)
        home.batches.claim("s1")
        assert figures_at(serving, 100.0).batches.oldest_waiting_s == 0
