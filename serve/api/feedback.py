"""`POST /v1/feedback`: feedback of an end user on a sampled answer."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from quality.errors import QualityStoreError
from serve.access.keys import KeyRecord
from serve.access.tenants import KeyLimiter
from serve.api.bodies import BodyReader
from serve.errors import ConflictError, NotReadyError, StoreFullError
from serve.monitor.feedback import GivenFeedback, TakenFeedback
from serve.monitor.monitor import Monitor

_MAX_BODY_BYTES = 131_072
_MAX_CORRECTION_CHARS = 16_384
_STORE_TIMEOUT_S = 15.0

Text = Annotated[str, Field(min_length=1, max_length=200)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Correction = Annotated[str, Field(min_length=1, max_length=_MAX_CORRECTION_CHARS, pattern=r"\S")]
_ONE_ID: JsonDict = {"oneOf": [{"required": ["request_id"]}, {"required": ["response_id"]}]}
_VALUE_FIELDS = ("score", "correct", "correction", "preference")
_A_VALUE: JsonDict = {
    "anyOf": [{"required": [name]} for name in _VALUE_FIELDS],
    "not": {"required": ["score", "correct"]},
}


class Preference(BaseModel):
    """The answer is better than another one to the same conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    over: Text = Field(description="Request or response id of the other answer.")


# Without a `$ref`, which could not be resolved in `/openapi.json`.
Preferred = Annotated[Preference, WithJsonSchema(Preference.model_json_schema())]


class FeedbackBody(BaseModel):
    """Feedback on one answer; later feedback of the same user replaces it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={**_ONE_ID, **_A_VALUE})

    request_id: Text | SkipJsonSchema[None] = Field(None, description="`x-request-id` of the answer.")
    response_id: Text | SkipJsonSchema[None] = Field(
        None, description="`id` of the answer; required without `request_id`."
    )
    score: Score | SkipJsonSchema[None] = Field(None, description="0 (useless) to 1 (perfect).")
    correct: bool | SkipJsonSchema[None] = Field(None, description="true: a score of 1; false: a score of 0.")
    correction: Correction | SkipJsonSchema[None] = Field(None, description="The right answer.")
    preference: Preferred | SkipJsonSchema[None] = None
    user: Text | SkipJsonSchema[None] = Field(
        None, description="Your id of the end user. Without it, all feedback of a tenant counts as one user's."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_null(cls, given: Any) -> Any:
        nulls = sorted(name for name, value in given.items() if value is None) if isinstance(given, dict) else ()
        if nulls:
            raise ValueError(f"`{nulls[0]}` must not be null; leave it out")
        return given

    @model_validator(mode="after")
    def _names_one_answer_and_has_a_value(self) -> "FeedbackBody":
        if (self.request_id is None) == (self.response_id is None):
            raise ValueError("needs `request_id` or `response_id`, and not both")
        if not self.model_fields_set.intersection(_VALUE_FIELDS):
            raise ValueError("needs one of `score`, `correct`, `correction` and `preference`")
        if self.score is not None and self.correct is not None:
            raise ValueError("`score` and `correct` exclude each other; give one of them")
        return self

    def given_by(self, tenant: str) -> GivenFeedback:
        return GivenFeedback(
            tenant,
            self.request_id or self.response_id or "",
            user=self.user,
            score=self.score if self.correct is None else float(self.correct),
            correction=self.correction,
            over=self.preference.over if self.preference else None,
        )


class FeedbackAnswer(BaseModel):
    """Stored feedback, and the version that gave the answer."""

    object: str = "feedback"
    adapter: str
    score: float | None
    has_correction: bool
    has_preference: bool


class FeedbackRoute:
    """Stores feedback if the monitor stores answers with their text.

    Args:
        monitor: None if the quality monitor is off.
    """

    def __init__(self, bodies: BodyReader, tenants: KeyLimiter, monitor: Monitor | None) -> None:
        self._bodies = bodies
        self._tenants = tenants
        self._monitor = monitor

    async def take(self, request: Request, key: KeyRecord) -> FeedbackAnswer:
        """Raises: ServeError."""
        with await self._tenants.take(key):
            body = _validated(await self._bodies.read(request, key.tenant, max_bytes=_MAX_BODY_BYTES))
            give = self._giver()
            try:
                async with asyncio.timeout(_STORE_TIMEOUT_S):
                    taken = await asyncio.wrap_future(give(body.given_by(key.tenant)))
            except TimeoutError:
                raise NotReadyError(
                    f"The feedback was not stored within {_STORE_TIMEOUT_S:g} s. Send it again."
                ) from None
            except QualityStoreError as error:
                raise StoreFullError("The feedback cannot be stored now; see the server's log.") from error
        feedback = taken.feedback
        return FeedbackAnswer(
            adapter=f"{taken.adapter}@{taken.version}" if taken.version else taken.adapter,
            score=feedback.score,
            has_correction=feedback.correction is not None,
            has_preference=feedback.over_id is not None,
        )

    def _giver(self) -> Callable[[GivenFeedback], Future[TakenFeedback]]:
        if self._monitor is None or self._monitor.give_feedback is None:
            raise ConflictError(
                "This server takes no feedback, because it does not store the text of answers. Ask its operator to set "
                "`quality.privacy` to redacted or full."
            )
        if self._monitor.is_paused:
            raise ConflictError("The quality monitor is paused, so no feedback is stored. Send it again later.")
        return self._monitor.give_feedback


def _validated(body: dict[str, Any]) -> FeedbackBody:
    try:
        return FeedbackBody.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError([each | {"loc": _place(each["loc"])} for each in error.errors()]) from None


def _place(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The path of a field; pydantic also names the alternatives of a type."""
    return ("body", *map(str, loc[:1]), *(str(part) for part in loc[1:] if part in Preference.model_fields))
