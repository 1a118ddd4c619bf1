"""`lorikeet serve`: one process that answers, measures and stops cleanly."""

import ipaddress
import logging
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry
from rich.console import Console

from adapters.base import read_base
from adapters.errors import AdapterError
from adapters.store import AdapterStore
from config.errors import ConfigError
from config.home import Home
from config.load import load_serve
from config.schema import ServeConfig

logger = logging.getLogger(__name__)


def serve(
    config_file: Annotated[Path, typer.Argument(help="Server configuration, YAML.")] = Path("config/serve.yaml"),
    port: Annotated[int | None, typer.Option(help="Instead of the configuration's port.")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of the configuration's host.")] = None,
    home: Annotated[Path, typer.Option(envvar="LORIKEET_HOME", help="State folder.")] = Path("var"),
) -> None:
    """Serve the base model and every published adapter behind one OpenAI-compatible endpoint."""
    try:
        config = load_serve(config_file)
        overrides = {key: value for key, value in (("port", port), ("host", host)) if value is not None}
        config = ServeConfig.model_validate(config.model_dump() | overrides)
        read_base(Home(home).bases / config.base)
    except (ConfigError, AdapterError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
    _set_up_logging(config)
    run(config, Home(home))


def run(config: ServeConfig, home: Home) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight get `drain_timeout_s` to finish."""
    import uvicorn

    from serve.engine.arguments import set_environment

    set_environment(config.log_level)

    from serve.app import Parts, create_app
    from serve.engine.engine import VllmEngine
    from serve.metrics import ServeMetrics
    from serve.residency import Residency
    from serve.resolver import Resolver

    base_folder = (home.bases / config.base).resolve()
    store = AdapterStore(home.adapters.resolve())
    metrics = ServeMetrics(CollectorRegistry(), config.served_model_name)
    engine = VllmEngine(config, base_folder, metrics)
    residency = Residency(store, engine, base_folder, config, metrics)
    resolver = Resolver(store, residency, config.served_model_name)
    app = create_app(Parts(engine, resolver, metrics, config.max_body_bytes))
    logger.info("Starting the engine on %s; %d adapters in the store", config.base, len(store.names()))
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(config.drain_timeout_s),
    )


def _set_up_logging(config: ServeConfig) -> None:
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not _is_loopback(config.host):
        logger.warning("Listening on %s without API keys: everyone who reaches it can use it.", config.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
