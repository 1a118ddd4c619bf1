"""`/metrics` for Prometheus, and a separate port for it without authentication."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.errors import ConfigError
from config.serve import ServeConfig
from serve.api.guard import Guard, WebRules
from serve.observe.metrics import ServeMetrics

_DRAIN_S = 1


def metrics_answer(metrics: ServeMetrics) -> Response:
    """The server's own metrics and vLLM's, in Prometheus' text format."""
    return Response(scrape(metrics), media_type=CONTENT_TYPE_LATEST)


def scrape(metrics: ServeMetrics) -> bytes:
    """The text of `/metrics`."""
    return generate_latest(metrics.registry) + generate_latest(metrics.of_vllm)


def metrics_app(metrics: ServeMetrics, rules: WebRules) -> Starlette:
    """An application with only `/metrics`, without authentication."""

    def answer(_: Request) -> Response:
        return metrics_answer(metrics)

    guard = Middleware(Guard, rules=rules, refused=metrics.key_refused)
    return Starlette(routes=[Route("/metrics", answer)], middleware=[guard])


class MetricsPort:
    """Listens on `metrics_host` and `metrics_port` from here on, and answers while `run` does.

    Raises:
        ConfigError: Nothing can listen there.
    """

    def __init__(self, config: ServeConfig, metrics: ServeMetrics) -> None:
        assert config.metrics_port is not None
        self._app = metrics_app(metrics, WebRules.of(config, config.metrics_host))
        self._address = config.metrics_host, config.metrics_port
        self._socket = _listen(*self._address)

    async def run(self) -> None:
        """Answer until cancelled."""
        if self._socket.fileno() < 0:  # closed with the server before, which ended unasked
            self._socket = _listen(*self._address)
        server = _EmbeddedServer(
            uvicorn.Config(self._app, log_config=None, access_log=False, timeout_graceful_shutdown=_DRAIN_S)
        )
        serving = asyncio.create_task(server.serve([self._socket]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving


class _EmbeddedServer(uvicorn.Server):
    """A server in the event loop of another one, to which signals belong."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on `metrics_port` {port} of {host!r}: {error.strerror or error}. Choose another "
            "port, or stop the program that uses it."
        ) from None
