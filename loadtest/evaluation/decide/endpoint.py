"""The server that is asked: the one of `--url`, else a running one that has the models, else a temporary one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from config.home import Home
from config.load import load_serve
from loadtest.bench.options import BenchOptions
from loadtest.bench.servers import kept_logs, our_server, serve_config
from loadtest.evaluate import EvaluationError

_PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class ServerChoice:
    """Where to ask.

    Attributes:
        url: Of an endpoint; None: start a temporary server.
        base: Prepared base of the domain, for a temporary server.
        adapter: Version that must be served; None: the base alone.
    """

    url: str | None
    home: Home
    serve_file: Path
    base: str
    adapter: str | None
    api_key: str


@contextmanager
def asked_server(choice: ServerChoice, say: Callable[[str], None]) -> Iterator[str]:
    """The URL to ask, until the block ends.

    Raises:
        ConfigError: The configuration of a temporary server cannot be read.
        TargetError: It did not become ready; the message ends with its last lines.
    """
    running = choice.url or _running(choice)
    if running is not None:
        say(f"asks the server at {running}")
        yield running
        return
    options = BenchOptions(choice.home, choice.serve_file, environment=dict(os.environ), say=say)
    config = serve_config(options, base=choice.base)
    say("starts a temporary server (the first start compiles the model, for two or three minutes)")
    with kept_logs() as folder, our_server(config, choice.home, folder, options.environment) as server:
        say(f"the server is ready after {server.ready_s:.0f} s")
        yield f"{server.url}/v1"


def check_reachable(url: str) -> None:
    """Raises EvaluationError where nothing answers at the URL."""
    try:
        httpx.get(f"{url}/models", timeout=_PROBE_TIMEOUT_S)
    except httpx.ReadTimeout:
        pass  # a busy one
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EvaluationError(
            f"{url} does not answer ({error}). Start a server (`lorikeet serve config/serve.yaml`), or leave `--url` "
            "out: a temporary one is started."
        ) from None


def _running(choice: ServerChoice) -> str | None:
    """A server at the configured port that serves the domain's base and adapter."""
    config = load_serve(choice.serve_file)
    if config.base != choice.base:
        return None
    url = f"http://127.0.0.1:{config.port}/v1"
    model = choice.adapter or config.served_model_name
    headers = {"authorization": f"Bearer {choice.api_key}"}
    try:
        found = httpx.get(f"{url}/models/{model}", headers=headers, timeout=_PROBE_TIMEOUT_S)
        return url if found.status_code == 200 and found.json().get("owned_by") == "lorikeet" else None
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
