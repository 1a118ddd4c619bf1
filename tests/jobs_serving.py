"""A server with files and jobs on a loopback port, OpenAI's client of it, and a worker that trains nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from openai import AsyncOpenAI

from adapters.jobs.models import model_name
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job, JobFailure
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, create_key
from tests.serving import Serving, make_serving

WORKER = "worker-1"


def chat_rows(num: int = 12) -> bytes:
    """A fine-tuning file of conversations."""
    rows = [
        {"messages": [{"role": "user", "content": f"Tree {n}?"}, {"role": "assistant", "content": "Oak."}]}
        for n in range(num)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def make_jobs_serving(folder: Path, store: AdapterStore, base_folder: Path, **changes: Any) -> Serving:
    return make_serving(store, base_folder, jobs_folder=folder / "jobs", **changes)


def token_of(folder: Path, tenant: str, **grant: Any) -> str:
    """A new key of a tenant, which may train."""
    return create_key(
        folder / "keys.json", KeyGrant(tenant=tenant, **({"may_train": True} | grant)), now=datetime.now(UTC)
    ).token


@asynccontextmanager
async def running_server(serving: Serving) -> AsyncIterator[str]:
    """The address of `/v1` on a real HTTP server."""
    config = uvicorn.Config(serving.app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def sdk_of(serving: Serving, token: str = "none") -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client of a real HTTP server."""
    async with running_server(serving) as url, AsyncOpenAI(base_url=url, api_key=token, max_retries=0) as client:
        yield client


class FakeWorker:
    """Moves jobs as a worker does, and publishes a tiny adapter."""

    def __init__(self, serving: Serving) -> None:
        assert serving.jobs is not None
        self._serving = serving
        self.queue: JobQueue = serving.jobs.queue

    def begin(self, job_id: str) -> Job:
        """Validate a job and take it."""
        self.queue.validated(job_id)
        job = self.queue.claim(WORKER)
        assert job is not None
        assert job.id == job_id
        return job

    def step(self, job: Job, number: int) -> None:
        metrics = {"step": float(number), "train_loss": 1.0 / number}
        data = {"total_steps": 3, **metrics}
        message = f"Step {number}/3: training loss={metrics['train_loss']:.2f}"
        self.queue.add_event(job.id, message, worker=WORKER, type="metrics", data=data)
        self.queue.progress(job.id, WORKER, trained_tokens=100 * number)

    def succeed(self, job: Job, *, promote: bool = False) -> Job:
        """Publish, and end a job with its checkpoints and its model."""
        manifest = self._serving.publish(job.adapter, promote=promote)
        version = f"{job.adapter}@{manifest.version}"
        base = job.base_name or job.base
        name = model_name(base, job.owner, job.suffix, job.id)
        checkpoint = model_name(base, job.owner, job.suffix, job.id, 2)
        self.queue.add_checkpoint(
            job.id, WORKER, 2, model_name=checkpoint, metrics={"step": 2.0, "valid_loss": 0.5}, version=version
        )
        return self.queue.finish(
            job.id, WORKER, "succeeded", fine_tuned_model=name, version=version, trained_tokens=300
        )

    def train(self, job_id: str, *, promote: bool = False) -> Job:
        """From validation to the end."""
        job = self.begin(job_id)
        for number in (1, 2, 3):
            self.step(job, number)
        return self.succeed(job, promote=promote)

    def fail(self, job_id: str, code: str, message: str) -> Job:
        job = self.begin(job_id)
        return self.queue.finish(job.id, WORKER, "failed", error=JobFailure(code=code, message=message))
