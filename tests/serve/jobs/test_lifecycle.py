"""A fine-tuning job from its file to its deleted model, as OpenAI's own client sees it."""

import asyncio
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from adapters.reference import Target
from adapters.store.store import AdapterStore
from tests.jobs_serving import FakeWorker, chat_rows, make_jobs_serving, sdk_of
from tests.serving import BASE_NAME, Serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    return make_jobs_serving(tmp_path, store, base_folder)


async def test_a_script_for_openai_trains_and_asks_its_model(serving: Serving) -> None:
    worker = FakeWorker(serving)
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(
            model=BASE_NAME, training_file=file.id, suffix="Trees", seed=7, metadata={"team": "a"}
        )
        assert (job.status, job.object, job.seed) == ("validating_files", "fine_tuning.job", 7)
        worker.train(job.id)
        job = await client.fine_tuning.jobs.retrieve(job.id)
        checkpoints = await client.fine_tuning.jobs.checkpoints.list(job.id)
        answers = [
            await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Oak?"}])
            for name in (job.fine_tuned_model or "", checkpoints.data[0].fine_tuned_model_checkpoint, "trees@1")
        ]
    assert (job.status, job.trained_tokens, job.error) == ("succeeded", 300, None)
    assert job.fine_tuned_model == f"ft:{BASE_NAME}:anonymous:Trees:{job.id[6:14]}"
    assert [answer.model for answer in answers] == ["trees@1"] * 3
    assert (job.hyperparameters.n_epochs, job.metadata) == ("auto", {"team": "a"})
    assert checkpoints.data[0].metrics.valid_loss == 0.5


@pytest.mark.slow
async def test_events_come_newest_first_in_pages(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        FakeWorker(serving).train(job.id)
        page = await client.fine_tuning.jobs.list_events(job.id, limit=3)
        events = [event async for event in page]
    assert page.has_more
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
    assert len({event.id for event in events}) == len(events) > 3
    assert "Step 1/3" in [event for event in events if event.type == "metrics"][-1].message


@pytest.mark.slow
async def test_a_stream_of_events_ends_with_the_job(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        FakeWorker(serving).train(job.id)
        lines = []
        async with client.fine_tuning.jobs.with_streaming_response.list_events(
            job.id, extra_query={"stream": True}
        ) as response:
            lines = [line async for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "Created fine-tuning job" in lines[0]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.slow
async def test_models_list_name_and_delete_the_fine_tuned_one(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id, suffix="trees")
        name = FakeWorker(serving).train(job.id).fine_tuned_model or ""
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve(name)
        deleted = await client.models.delete(name)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.models.retrieve(name)
        rest = [model.id async for model in client.models.list()]
    assert {name, "trees@1"} <= set(listed)
    assert (one.id, (one.model_extra or {})["root"]) == (name, "trees@1")
    assert (deleted.id, deleted.deleted, deleted.object) == (name, True, "model")
    assert rest == [BASE_NAME]
    assert serving.store.versions("trees") == []


async def train(client: openai.AsyncOpenAI, serving: Serving, *, promote: bool = True) -> str:
    """The name of another version of `trees`."""
    file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id, suffix="trees")
    return FakeWorker(serving).train(job.id, promote=promote).fine_tuned_model or ""


@pytest.mark.slow
async def test_a_deleted_version_gives_its_alias_back(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        names = [await train(client, serving), await train(client, serving)]
        await client.chat.completions.create(model=names[1], messages=[])
        await client.models.delete(names[1])
        answer = await client.chat.completions.create(model="trees", messages=[])
        await client.models.delete(names[0])
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="trees", messages=[])
        third = await train(client, serving)
        last = await client.chat.completions.create(model=third, messages=[])
    assert (answer.model, last.model) == ("trees@1", "trees@3")


async def test_a_model_in_use_is_not_deleted(serving: Serving) -> None:
    store = serving.store
    async with sdk_of(serving) as client:
        name, other = await train(client, serving), await train(client, serving, promote=False)
        store.promote("trees", 2, "canary")
        with pytest.raises(openai.ConflictError, match="'trees@1' takes part in a canary trial"):
            await client.models.delete(name)
        store.promote("trees", 1, "canary")
        store.pin(Target("trees", 1))
        with pytest.raises(openai.ConflictError, match="'trees@1' is pinned"):
            await client.models.delete(name)
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=other, training_file=file.id)
        with pytest.raises(openai.ConflictError, match=f"Job {job.id} continues from"):
            await client.models.delete(other)
        with pytest.raises(openai.NotFoundError, match="no fine-tuned model 'trees@1'"):
            await client.models.delete("trees@1")
        answers = [await client.chat.completions.create(model=each, messages=[]) for each in (name, other)]
    assert [answer.model for answer in answers] == ["trees@1", "trees@2"]


async def test_a_model_that_answers_is_not_deleted(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        name = await train(client, serving)
        serving.engine.never_answers = True
        asking = asyncio.create_task(client.chat.completions.create(model=name, messages=[]))
        await serving.engine.answering.wait()
        with pytest.raises(openai.ConflictError, match="is answering 1 requests"):
            await client.models.delete(name)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


@pytest.mark.slow
async def test_jobs_are_listed_in_pages_and_by_metadata(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        made = [
            (
                await client.fine_tuning.jobs.create(
                    model=BASE_NAME, training_file=file.id, suffix=f"s{n}", metadata={"n": str(n % 2)}
                )
            ).id
            for n in range(5)
        ]
        listed = [job.id async for job in client.fine_tuning.jobs.list(limit=2)]
        bare = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        none = [job.id async for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
        odd = [job.id async for job in client.fine_tuning.jobs.list(metadata={"n": "1"})]
    assert listed == made[::-1]
    assert (odd, none) == ([made[3], made[1]], [bare.id])


@pytest.mark.slow
async def test_a_job_goes_on_from_a_fine_tuned_model(serving: Serving) -> None:
    worker = FakeWorker(serving)
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        first = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id, suffix="trees")
        name = worker.train(first.id).fine_tuned_model or ""
        second = await client.fine_tuning.jobs.create(model=name, training_file=file.id, suffix="trees")
    job = worker.queue.get(None, second.id)
    assert (second.model, job.from_version, job.base) == (name, "trees@1", serving.base_folder.name)


@pytest.mark.slow
async def test_pause_and_resume_and_cancel_move_a_job(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        FakeWorker(serving).queue.validated(job.id)
        statuses = [
            (await act(job.id)).status
            for act in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume, client.fine_tuning.jobs.cancel)
        ]
        with pytest.raises(openai.BadRequestError, match="it is cancelled, and cannot cancel") as again:
            await client.fine_tuning.jobs.cancel(job.id)
    assert statuses == ["paused", "queued", "cancelled"]
    assert again.value.code == "invalid_status"


@pytest.mark.slow
async def test_a_failed_job_says_why(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        FakeWorker(serving).fail(job.id, "invalid_training_file", "Line 3 is too long.")
        job = await client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("invalid_training_file", "Line 3 is too long.")


@pytest.mark.slow
async def test_a_file_deleted_while_its_job_runs_ends_no_job(serving: Serving) -> None:
    worker = FakeWorker(serving)
    async with sdk_of(serving) as client:
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        running = worker.begin(job.id)
        await client.files.delete(file.id)
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            await client.files.retrieve(file.id)
        assert serving.jobs is not None
        assert serving.jobs.files.held_path(job.id, file.id).read_bytes() == chat_rows()
        worker.succeed(running)
        with pytest.raises(openai.NotFoundError, match="No such File object") as gone:
            await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
    assert (gone.value.code, gone.value.param) == ("invalid_training_file", "training_file")


@pytest.mark.slow
async def test_a_model_that_one_of_many_jobs_continues_from_is_not_deleted(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a page of them."""
    monkeypatch.setattr("adapters.jobs.rows.MAX_PAGE", 2)
    async with sdk_of(serving) as client:
        name = await train(client, serving)
        file = await client.files.create(file=("trees.jsonl", chat_rows()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=name, training_file=file.id)
        for _ in range(3):
            await client.fine_tuning.jobs.create(model=BASE_NAME, training_file=file.id)
        with pytest.raises(openai.ConflictError, match=f"{job.id} continues from"):
            await client.models.delete(name)


async def test_a_failing_disk_tells_clients_no_paths(serving: Serving, tmp_path: Path) -> None:
    assert serving.jobs is not None
    serving.jobs.database.close()
    async with serving.client() as client:
        answer = await client.get("/v1/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert str(tmp_path) not in answer.text
