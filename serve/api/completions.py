"""Handle one completion request end to end."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from adapters.store.manifest import RequestDefaults
from config.serve import ServeLimits
from serve.access.admission import Admission
from serve.access.cache_salt import CacheSalts
from serve.access.capacity import Ask, EngineShare
from serve.access.keys import ANONYMOUS, KeyRecord
from serve.access.ownership import ModelAccess
from serve.access.tenants import KeyLimiter
from serve.api.bodies import BodyReader
from serve.api.disconnect import run_until_disconnect
from serve.api.responses import error_event, error_response, request_id, unexpected_error
from serve.api.streaming import Backlog, LeasedStream
from serve.background import is_told_to_end
from serve.engine.protocol import BACKGROUND_PRIORITY, Answer, Endpoint, Engine
from serve.errors import DeadlineError, NotReadyError, ServeError
from serve.limits.defaults import AnswerLengths, fill_defaults
from serve.limits.limits import check_limits, check_sequences, num_sequences, tokens_asked
from serve.limits.stops import without_empty_stops
from serve.observe.logs import log_request, logged_request
from serve.records import AnsweredRequest, RequestContext, RequestObserver, RequestOutcome, RequestResult
from serve.residency.residency import Residency
from serve.routing.resolver import Resolution, Resolver
from serve.routing.shadow import Shadow

logger = logging.getLogger(__name__)

_BASE_HEADERS = {"x-lorikeet-digest": "base", "x-lorikeet-cold": "0"}


@dataclass
class Call:
    """State of one request. `held` releases its admission, its adapter lease and its tenant's quota.

    `result` is what the engine makes of it; `is_batch`: no client waits for it.
    """

    endpoint: Endpoint
    tenant: KeyRecord
    context: RequestContext
    held: AsyncExitStack
    is_batch: bool = False
    result: RequestResult = field(default_factory=RequestResult)
    deadline: float = math.inf
    body: dict[str, Any] = field(default_factory=dict)
    served_name: str | None = None
    defaults: RequestDefaults | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """The checks and queues in front of the engine."""

    limits: ServeLimits
    lengths: AnswerLengths
    bodies: BodyReader
    request_timeout_s: float
    tenants: KeyLimiter
    admission: Admission
    salts: CacheSalts
    access: ModelAccess


class Completions:
    """Answers `/v1/chat/completions`, `/v1/completions` and `/v1/responses`."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        residency: Residency,
        gate: Gate,
        shadow: Shadow,
        observer: RequestObserver,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._residency = residency
        self._gate = gate
        self._shadow = shadow
        self._observer = observer
        self._backlog = Backlog()

    @property
    def limits(self) -> ServeLimits:
        return self._gate.limits

    @property
    def bodies(self) -> BodyReader:
        return self._gate.bodies

    def demand(self) -> EngineShare:
        """What runs and waits."""
        return self._gate.admission.demand()

    @property
    def tenants(self) -> KeyLimiter:
        return self._gate.tenants

    async def answer(
        self, endpoint: Endpoint, request: Request, tenant: KeyRecord, *, is_batch: bool = False
    ) -> Response:
        """Handle a request; every error becomes a response in OpenAI's format.

        Args:
            is_batch: Answer it in what clients leave free; the key's rate limits do not apply.
        """
        async with AsyncExitStack() as held:
            context = RequestContext(tenant.tenant, request_id(request), traceparent=request.headers.get("traceparent"))
            context.source = "batch" if is_batch else "client"
            logged_request.set(context)
            call = Call(endpoint, tenant, context, held, is_batch)
            try:
                await self._take_share(call)
                await self._read(call, request)
                async with asyncio.timeout_at(call.deadline):
                    answer = await run_until_disconnect(request, self._begin(call))
            except ServeError as error:
                return self._failed(call, error)
            except TimeoutError:
                return self._failed(call, self._too_late())
            except ClientDisconnect:
                answer = None
            except BaseException as error:  # boundary: the request ends as others do
                if is_told_to_end(error):  # as at the end of a server that waits no longer
                    self._finish(call, "cancelled", 499)
                    raise
                return self._failed(call, _unexpected(call, error))
            if answer is None:
                self._finish(call, "cancelled", 499)
                return Response(status_code=499)  # the client has disconnected
            if isinstance(answer.body, dict):
                self._finish(call, "ok", 200)
                return JSONResponse(answer.body, headers=call.headers)
            events = self._stream(call, answer.body)
            return LeasedStream(events, call.headers, held.pop_all(), call.deadline, self._backlog)

    async def _take_share(self, call: Call) -> None:
        """Charge the key for a request before its body is read."""
        if call.is_batch:
            return
        share = call.held.enter_context(await self._gate.tenants.take(call.tenant))
        call.held.callback(lambda: share.debit(call.result.num_tokens))

    async def _read(self, call: Call, request: Request) -> None:
        """Read and validate the body. The request's timers start once it is complete."""

        def check(body: dict[str, Any]) -> None:
            body |= without_empty_stops(body)
            check_limits(body, call.endpoint, self._gate.limits)

        with call.context.phase("body"):
            call.body = await self._gate.bodies.read(request, call.tenant.tenant, check)
        call.context.started_s = time.perf_counter()
        call.deadline = asyncio.get_running_loop().time() + self._gate.request_timeout_s

    async def _begin(self, call: Call) -> Answer:
        """Resolve the model, wait for admission, load the adapter, fill in defaults, and call the engine."""
        with call.context.phase("resolve"):
            resolution = self._resolve(call)
        await self._take_turn(call, resolution)
        call.body |= {"model": resolution.served_name, "priority": _priority(call)}
        call.body |= self._gate.salts.salted(call.body, call.tenant.tenant)
        filled = fill_defaults(call.body, call.endpoint, call.defaults, self._gate.lengths)
        if filled.names:
            call.headers["x-lorikeet-defaults"] = ",".join(filled.names)
        answer = await self._engine.answer(call.endpoint, filled.body, call.context.caller, call.result)
        if resolution.shadow is not None:
            self._shadow.submit(call.endpoint, call.body, resolution.shadow)
        return answer

    def _resolve(self, call: Call) -> Resolution:
        if not self._engine.is_ready:
            raise NotReadyError("The server is starting. Poll GET /ready, or retry in a minute.")
        model, sticky_key = call.body.get("model"), _sticky_key(call)
        resolution = self._resolver.resolve(
            model, lambda name: self._gate.access.may_use(call.tenant, name), sticky_key
        )
        call.served_name = resolution.served_name
        call.context.sticky_key = None if "@" in str(model) else sticky_key
        return resolution

    async def _take_turn(self, call: Call, resolution: Resolution) -> None:
        """Wait for admission and lease the version; sets the response headers."""
        turn = self._gate.admission.enter(self._wanted(call, resolution), lambda: call.result.num_tokens)
        with call.context.phase("admission"):
            ticket = await call.held.enter_async_context(turn)
        call.headers = {
            "x-lorikeet-adapter": resolution.served_name,
            "x-request-id": call.context.request_id,
            **_BASE_HEADERS,
        }
        if resolution.target is not None:
            with call.context.phase("residency"):
                lease = await self._residency.lease(resolution.target, is_for_client=True)
            call.held.callback(lease.release)
            if ticket.load_s is not None:
                call.context.count_as_load(ticket.load_s)
            is_cold = lease.is_cold or ticket.load_s is not None
            call.context.is_cold, call.defaults = is_cold, lease.manifest.defaults
            call.headers |= {"x-lorikeet-digest": lease.manifest.digest, "x-lorikeet-cold": str(int(is_cold))}

    def _wanted(self, call: Call, resolution: Resolution) -> Ask:
        """The engine capacity that the request needs.

        Raises:
            InvalidRequestError: More sequences than one tenant may have there.
        """
        check_sequences(call.body, call.endpoint, self._gate.admission.most_sequences)
        target, lengths = resolution.target, self._gate.lengths
        defaults = self._resolver.defaults(target) if target else None
        longest = defaults.max_tokens if defaults and defaults.max_tokens else lengths.default
        num_virtual = self._resolver.num_virtual_tokens(target) if target else 0
        num_answers = num_sequences(call.body, call.endpoint)
        return Ask(
            f"{call.tenant.tenant}/batch" if call.is_batch else call.tenant.tenant,
            str(target) if target else None,
            _priority(call),
            num_answers,
            tokens_asked(call.body, call.endpoint, longest, lengths.most) + num_answers * num_virtual,
            call.is_batch,
        )

    async def _stream(self, call: Call, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Relay the engine's events and count them; an error after the first byte becomes an event."""
        end: tuple[RequestOutcome, int, str | None] = ("cancelled", 499, None)
        try:
            async with asyncio.timeout_at(call.deadline), aclosing(events):
                async for event in events:
                    yield event
            end = ("ok", 200, None)
        except TimeoutError:
            late = self._too_late()
            end = (_outcome(late), late.status, late.reason)
            yield error_event(late)
        except ServeError as error:
            end = (_outcome(error), error.status, error.reason)
            yield error_event(error)
        except BaseException as error:  # boundary
            if is_told_to_end(error):
                raise
            failure = _unexpected(call, error)
            end = (_outcome(failure), failure.status, failure.reason)
            yield error_event(failure)
        finally:
            self._finish(call, *end)

    def _too_late(self) -> DeadlineError:
        return DeadlineError(f"The answer was not complete after {self._gate.request_timeout_s:g} s.")

    def _failed(self, call: Call, error: ServeError) -> Response:
        self._finish(call, _outcome(error), error.status, error.reason)
        return error_response(error, {"x-request-id": call.context.request_id})

    def _finish(self, call: Call, outcome: RequestOutcome, status: int, reason: str | None = None) -> None:
        duration_s = time.perf_counter() - call.context.started_s
        record = AnsweredRequest(
            call.context, call.endpoint, call.served_name, outcome, status, reason, duration_s, call.result.generation
        )
        self._observer.request_finished(record)
        log_request(record)


def _priority(call: Call) -> int:
    return BACKGROUND_PRIORITY if call.is_batch else call.tenant.priority


def _unexpected(call: Call, error: BaseException) -> ServeError:
    logger.error("Unexpected error in request %s", call.context.request_id, exc_info=error)
    return unexpected_error()


def _outcome(error: ServeError) -> RequestOutcome:
    return "client_error" if error.status < 500 else "server_error"


def _sticky_key(call: Call) -> str:
    """Key of the canary split: the request's `user`, else the API key, else none."""
    user = call.body.get("user")
    if isinstance(user, str) and user:
        return user
    return call.context.request_id if call.tenant is ANONYMOUS else call.tenant.id
