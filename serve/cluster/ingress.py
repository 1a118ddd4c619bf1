"""The deployment that Ray's HTTP proxy calls: it reads the model from the body, and Ray's router does the rest."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jiter
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from adapters.store.store import AdapterStore
from config.home import Home
from config.serve import ServeConfig
from serve.api.responses import error_response
from serve.cluster.affinity import PRIMARY
from serve.cluster.bases import BaseOwners
from serve.cluster.job_models import JobModels
from serve.cluster.relay import Batch, RelayedResponse, body_of, is_opening, portable_scope
from serve.cluster.scrape import ReplicaScrape, merged_scrape
from serve.cluster.settings import ClusterSettings
from serve.cluster.spans import IngressSpan
from serve.errors import BodyTimeoutError, NotReadyError, ServeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_MAX_TRIES = 3
_BROADCAST_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class _Served:
    """One base and its replicas."""

    settings: ClusterSettings
    replicas: Any

    async def ask_all(self, method: str) -> list[Any]:
        """Every running replica's answer; one that ends meanwhile has none."""
        try:
            answers = await self.replicas.broadcast(method).results_async(
                timeout_s=_BROADCAST_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:
            return []
        for answer in answers:
            if isinstance(answer, BaseException):
                logger.warning("A replica did not answer %r: %r", method, answer)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def is_asleep(self) -> bool:
        """Whether it has been scaled to zero; a request would start a replica."""
        return self.settings.num_replicas == 0 and not await self.ask_all("rank")


class Ingress:
    """Forwards each request to one replica. What is wrong with a request, the replica says.

    Args:
        settings: One for each base.
        replicas: Theirs, in the same order.
        worker: The job worker; it is not called, but Ray deploys with the ingress what it is bound to.
    """

    def __init__(
        self,
        settings: Sequence[ClusterSettings],
        *replicas: "DeploymentHandle[Any]",
        worker: "DeploymentHandle[Any] | None" = None,
    ) -> None:
        self._config = settings[0].config
        self._served = tuple(_Served(own, handle) for own, handle in zip(settings, replicas, strict=True))
        home, configs = Home(settings[0].home), [own.config for own in settings]
        self._jobs = _job_models(home, configs)
        reference = self._jobs.reference if self._jobs else str
        self._owners = BaseOwners(configs, AdapterStore(home.adapters), reference)
        self._tracing = _provider(self._config.otlp_endpoint)

    async def __call__(self, request: Request) -> Response:
        try:
            body = await self._read(request)
            return await self._answer(request, body)
        except ClientDisconnect:
            return Response(status_code=499)  # the client has disconnected
        except ServeError as error:
            return error_response(error)

    async def _answer(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        if path in ("/health", "/ready", "/metrics"):
            return await self._ask_awake(request)
        if path == "/v1/models" and len(self._served) > 1:
            return await self._models(request)
        session, model = _route(request, body)
        asked = model
        if self._jobs and path == "/v1/batches" and request.method == "POST":
            asked = await asyncio.to_thread(self._jobs.model_of_batch, body)
        return await self._ask(self._served[self._owners.owner(asked)], request, body, session, model)

    async def _read(self, request: Request) -> bytes:
        """The body, or as much of one that is too large as shows it."""
        received = bytearray()
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                async for piece in request.stream():
                    received += piece
                    if len(received) > self._config.max_body_bytes:
                        break
        except TimeoutError:
            raise BodyTimeoutError(
                f"The request body was not complete after {self._config.body_timeout_s:g} s; {len(received)} bytes "
                "were received. Send it faster."
            ) from None
        return bytes(received)

    async def _ask(
        self, served: _Served, request: Request, body: bytes, session: str = "", model: str = ""
    ) -> RelayedResponse:
        """Ask a replica; another one where it dies before it has sent anything."""
        handle: Any = served.replicas.options(stream=True, session_id=session, multiplexed_model_id=model)
        is_traced = request.method == "POST" and request.url.path.startswith("/v1/")  # as the replica does
        span = IngressSpan(self._tracing if is_traced else None, request, model)
        for _ in range(_MAX_TRIES):
            answer = handle.answer.remote(span.scope(portable_scope(request.scope)), body)
            try:
                first = await _first_token(answer)
            except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
                logger.warning("A replica ended before it answered, so another one is asked: %r", error)
                span.note("a replica ended before it answered")
            except BackPressureError as error:
                span.end(503, error)
                raise NotReadyError("All replicas are busy. Retry in a few seconds.") from error
            except BaseException as error:
                answer.cancel()
                span.end(None, error)
                raise
            else:
                return RelayedResponse(first, span.around(first[0]["status"], _closing(answer)))
        span.end(503)
        raise NotReadyError("No replica answers. Poll GET /ready, or retry in a minute.")

    async def _ask_awake(self, request: Request) -> Response:
        """Health and metrics, which must not start a replica of a base that is scaled to zero."""
        awake = [served for served in self._served if not await served.is_asleep()]
        if not awake:
            is_scrape = request.url.path == "/metrics"
            return Response(media_type=CONTENT_TYPE_LATEST) if is_scrape else JSONResponse({"status": "asleep"})
        answer = await self._ask(awake[0], request, b"")
        if request.url.path == "/metrics" and answer.status_code == 200:  # the caller may read them
            return await self._metrics(awake)
        return answer

    async def _metrics(self, awake: Sequence[_Served]) -> Response:
        has_several = len(self._served) > 1
        scrapes = [
            ReplicaScrape(text, rank, served.settings.config.served_model_name if has_several else None)
            for served in awake
            for rank, text in await served.ask_all("metrics")
        ]
        return Response(merged_scrape(scrapes), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        """Every base's list of models, with those that it answers."""
        listed: list[dict[str, Any]] = []
        for number, served in enumerate(self._served):
            answer = await self._ask(served, request, b"")
            if answer.status_code != 200:
                return answer
            cards = json.loads(await body_of(answer))["data"]
            listed += [card for card in cards if self._owners.owner(card["id"]) == number]
        return JSONResponse({"object": "list", "data": listed})


def _job_models(home: Home, configs: Sequence[ServeConfig]) -> JobModels | None:
    """None where there is one base, which everything is for, or no jobs."""
    if len(configs) == 1 or not any(config.jobs.enabled for config in configs):
        return None
    return JobModels(home, configs[0].max_body_bytes)


def _provider(endpoint: str | None) -> "TracerProvider | None":
    if endpoint is None:
        return None
    from serve.observe.tracing import otlp_provider

    return otlp_provider(endpoint)


async def _first_token(answer: AsyncIterator[Batch]) -> Batch:
    """An answer's messages to its first token: nothing is sent before, so another replica can be asked until then."""
    first = list(await anext(answer))
    while is_opening(first):
        more = await anext(answer, None)
        if more is None:
            break
        first += more
    return first


async def _closing(answer: Any) -> AsyncIterator[Batch]:
    """The rest of an answer; the replica is notified when the client disconnects."""
    try:
        async for batch in answer:
            yield batch
    except RayError as error:
        logger.warning("A replica ended while it answered: %r", error)
        raise
    finally:
        answer.cancel()


def _route(request: Request, body: bytes) -> tuple[str, str]:
    """Session and model that Ray's router is told of a request."""
    path = request.url.path
    if path.startswith(("/admin/quality", "/v1/feedback")):
        return PRIMARY, ""
    if path.startswith(("/admin/adapters/", "/v1/models/")):
        return "", path.split("/")[3]
    return "", model_of(body)


def model_of(body: bytes) -> str:
    """The model that a body names; "" where it names none, which is for the replica to refuse."""
    with suppress(ValueError):
        parsed = jiter.from_json(body)
        if isinstance(parsed, dict) and isinstance(parsed.get("model"), str):
            return str(parsed["model"])[:200]
    return ""
