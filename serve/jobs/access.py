"""Who may use the routes of files and jobs, and how their small bodies are read."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel

from serve.access.keys import KeyRecord
from serve.api.responses import validated
from serve.errors import ForbiddenError

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_BODY_BYTES = 256 << 10


async def require_trainer(request: Request) -> KeyRecord:  # async, or FastAPI would run it in a thread
    """The key of a request that may store files and run jobs.

    Raises:
        UnauthorizedError: No valid key.
        ForbiddenError: The key may not train.
    """
    key: KeyRecord = request.app.state.authenticate(request)
    if not key.may_train:
        raise ForbiddenError(
            "This key may not store files or run jobs. Ask the operator of this server for a key created with "
            "`lorikeet keys create TENANT --train`."
        )
    return key


Trainer = Annotated[KeyRecord, Depends(require_trainer)]


def body_of(model: type[ModelT]) -> Callable[..., Awaitable[ModelT]]:
    """A dependency that reads a JSON body after the key was checked."""

    async def read(request: Request, key: Trainer) -> ModelT:
        body = await request.app.state.bodies.read(request, key.tenant, max_bytes=_MAX_BODY_BYTES)
        return validated(model, body)

    return read
