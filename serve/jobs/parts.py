"""What the routes of files, uploads, fine-tuning jobs and batches work with, and how they get it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serve.access.tenants import KeyLimiter
from serve.jobs.deletion import ModelDeletion
from serve.jobs.events import EventStreams
from serve.jobs.examples import ExampleFiles
from serve.jobs.forms import FormReader
from serve.jobs.services import JobServices
from serve.jobs.submission import JobSubmission


@dataclass(frozen=True)
class JobParts:
    """The components behind the routes of one server.

    Attributes:
        limiter: Counts the requests of a key.
        base: Name of the prepared base that is served: its servers run the batches that are created here.
        wake_batches: Notifies the runner of a new batch.
    """

    services: JobServices
    examples: ExampleFiles
    forms: FormReader
    submission: JobSubmission
    streams: EventStreams
    deletion: ModelDeletion
    limiter: KeyLimiter
    base: str
    wake_batches: Callable[[], None]


async def _parts(request: Request) -> JobParts:  # async, or FastAPI would run it in a thread
    parts: JobParts = request.app.state.jobs
    return parts


Jobs = Annotated[JobParts, Depends(_parts)]
