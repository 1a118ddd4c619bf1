"""`lorikeet serve`: start the server."""

import logging
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from adapters.bases import read_base
from adapters.errors import AdapterError
from config.errors import ConfigError
from config.home import Home
from config.hosts import is_loopback
from config.load import load_serve
from config.packaged import default_file
from config.serve import ServeConfig
from config.terminal import print_error
from quality.errors import QualityStoreError
from serve.access.exposure import warn_of_exposure
from serve.access.keys import KeyRing
from serve.errors import AddressError, EngineStartError
from serve.listening import listen
from serve.observe.logs import LogFormat, set_up_logging

logger = logging.getLogger(__name__)


def serve(
    config_file: Annotated[
        Path | None,
        typer.Argument(help="Server configuration file (YAML); default: config/serve.yaml, or the packaged one."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Override the configured port.")] = None,
    host: Annotated[str | None, typer.Option(help="Override the configured host.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Override the configured log format.")] = None,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Serve the base model and every published adapter behind one OpenAI-compatible endpoint."""
    config_file = config_file or default_file("serve.yaml")
    try:
        config = load_serve(config_file)
        given = {"port": port, "host": host, "log_format": log_format}
        overrides = {key: value for key, value in given.items() if value is not None}
        config = ServeConfig.model_validate(config.model_dump() | overrides)
        read_base(Home(home).bases / config.base)
        keys, judge_key = _keys(config, Home(home)), _judge_key(config)
    except (ConfigError, AdapterError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    set_up_logging(config.log_level, config.log_format)
    logger.info("Configuration: %s", config_file)
    warn_of_exposure(config, Home(home))
    try:
        run(config, Home(home), keys, judge_key)
    except (QualityStoreError, ConfigError, AdapterError, AddressError, EngineStartError) as error:
        print_error(error)
        raise typer.Exit(1) from None


def run(config: ServeConfig, home: Home, keys: KeyRing, judge_key: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight get `drain_timeout_s` to finish.

    Raises:
        AddressError: Another program listens on the port.
        EngineStartError: The engine does not start.
    """
    with ExitStack() as opened:
        sockets = [opened.enter_context(each) for each in listen(config.host, config.port)]
        _serve_on(sockets, config, home, keys, judge_key)


def _serve_on(
    sockets: list[socket.socket], config: ServeConfig, home: Home, keys: KeyRing, judge_key: str | None
) -> None:
    import uvicorn

    from serve.engine.arguments import set_environment

    set_environment(config.log_level, config.log_format)

    from serve.api.connections import bounded_connections
    from serve.app import create_app
    from serve.build import build_server

    failures: list[BaseException] = []

    def end(failure: BaseException) -> None:
        failures.append(failure)
        server.should_exit = True

    logger.info("Starting the engine on %s", config.base)
    app = create_app(build_server(config, home, keys, judge_key), end)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=bounded_connections(config.max_connections),
            timeout_graceful_shutdown=int(config.drain_timeout_s),
        )
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again when all is done
        server.run(sockets)
    if failures:
        raise failures[0]


def _keys(config: ServeConfig, home: Home) -> KeyRing:
    """Raises ConfigError for a broken file, and for a server reachable from outside without keys."""
    default = home.keys if home.keys.exists() else None
    path = config.keys_file or default
    if path is None and not is_loopback(config.host):
        raise ConfigError(
            f"Without API keys the server may listen on loopback only, not on {config.host!r}. Create a key "
            f"first: `lorikeet keys create TENANT --home {home.root}`."
        )
    return KeyRing(path)


def _judge_key(config: ServeConfig) -> str | None:
    """Raises ConfigError where the variable that should hold the key is not set."""
    judge = config.quality.judge
    if judge is None or judge.api_key_env is None:
        return None
    if not os.environ.get(judge.api_key_env):
        raise ConfigError(
            f"`quality.judge.api_key_env` names the environment variable {judge.api_key_env!r}, which is not "
            "set. Export the judge's API key under that name, or remove `api_key_env` if the judge needs none."
        )
    return os.environ[judge.api_key_env]
