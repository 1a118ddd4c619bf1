"""`lorikeet serve`: start the server."""

import logging
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from adapters.bases import check_servable, read_base
from adapters.errors import AdapterError
from adapters.jobs.errors import JobsError
from config.errors import ConfigError
from config.home import Home
from config.load import load_serve
from config.packaged import default_file
from config.serve import ServeConfig
from config.terminal import print_error
from quality.errors import QualityStoreError
from serve.access.exposure import warn_of_exposure
from serve.access.keys import KeyRing
from serve.cluster.command import run_cluster
from serve.cluster.errors import ClusterError
from serve.errors import AddressError, EngineStartError
from serve.listening import listen
from serve.observe.logs import LogFormat, set_up_logging
from serve.secrets import open_keys, read_judge_key

logger = logging.getLogger(__name__)


def serve(
    config_files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Server configuration file (YAML); default: config/serve.yaml, or the packaged one. With --cluster: "
            "one for each base.",
            metavar="[CONFIG_FILE]...",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Override the configured port.")] = None,
    host: Annotated[str | None, typer.Option(help="Override the configured host.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Override the configured log format.")] = None,
    cluster: Annotated[
        Literal["ray"] | None,
        typer.Option(help="Run several servers as a Ray Serve application, on this machine or at RAY_ADDRESS."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=0, help="With --cluster: servers of each base [default: 2].")
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="With --cluster: add servers by load, up to this number; `--replicas` is the fewest."),
    ] = None,
    routing: Annotated[
        Literal["affinity", "sticky", "random"] | None,
        typer.Option(
            help="With --cluster, for comparison: `random` ignores where adapters are, `sticky` never copies one."
        ),
    ] = None,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Serve the base model and every published adapter behind one OpenAI-compatible endpoint."""
    options = {"--replicas": replicas, "--max-replicas": max_replicas, "--routing": routing}
    if cluster is None and (option := next((name for name, own in options.items() if own is not None), None)):
        raise typer.BadParameter(f"{option} is for several servers; add `--cluster ray`.", param_hint=option)
    files = config_files or [default_file("serve.yaml")]
    if cluster is None and len(files) > 1:
        raise typer.BadParameter("Several bases are several servers; add `--cluster ray`.", param_hint="CONFIG_FILE")
    given = {"port": port, "host": host, "log_format": log_format}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        configs = [ServeConfig.model_validate(load_serve(file).model_dump() | overrides) for file in files]
        for each in configs:
            check_servable(read_base(Home(home).bases / each.base))
        config = configs[0]
        keys, judge_key = open_keys(config, Home(home)), read_judge_key(config)
    except (ConfigError, AdapterError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    set_up_logging(config.log_level, config.log_format)
    logger.info("Configuration: %s", ", ".join(map(str, files)))
    warn_of_exposure(config, Home(home))
    try:
        if cluster is None:
            run(config, Home(home), keys, judge_key)
        else:
            fewest = replicas if replicas is not None else 1 if max_replicas else 2
            address = os.environ.get("RAY_ADDRESS") or None
            run_cluster(configs, Home(home), fewest, routing or "affinity", address, max_replicas)
    except (
        QualityStoreError,
        ConfigError,
        AdapterError,
        JobsError,
        AddressError,
        ClusterError,
        EngineStartError,
    ) as error:
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

    from serve.api.connections import KEEP_ALIVE_S, bounded_connections
    from serve.app import create_app
    from serve.build import build_server
    from serve.draining import DrainingServer

    failures: list[BaseException] = []

    def end(failure: BaseException) -> None:
        failures.append(failure)
        server.should_exit = True

    logger.info("Starting the engine on %s", config.base)
    parts = build_server(config, home, keys, judge_key)
    refused = parts.metrics.traffic.connections_refused
    server = DrainingServer(
        uvicorn.Config(
            create_app(parts, end),
            log_config=None,
            access_log=False,
            http=bounded_connections(config.max_connections, refused.inc),
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.drain_timeout_s),
        ),
        parts.begin_drain,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again when all is done
        server.run(sockets)
    if failures:
        raise failures[0]
