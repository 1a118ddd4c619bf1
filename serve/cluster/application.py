"""The application: one ingress, each base's replicas, the shared limits and the job worker.

For `serve.run` and config files.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field
from ray import serve
from ray.serve import Application

from config.home import Home
from config.load import load_serve
from config.model import Config
from config.serve import ServeConfig
from serve.cluster.affinity import Routing
from serve.cluster.autoscaling import autoscaling_options
from serve.cluster.bases import check_bases
from serve.cluster.errors import ClusterError
from serve.cluster.ingress import Ingress
from serve.cluster.jobs_worker import JobsWorker, reserved_cpus
from serve.cluster.key_limits import KeyLimits
from serve.cluster.replica import Replica
from serve.cluster.settings import ClusterSettings, check_numbers, home_id, installed_versions

_REPORT_EVERY_S = 1.0
_WORKER_ENDS_S = 30.0
"""Time for the job worker to end: it kills a training that has not reached a checkpoint after 20 s."""
_WAITS_HERE = 4096
"""Requests that Ray hands on at a time: those that must wait do so in the replica's own, fair queue."""


class ApplicationArguments(Config):
    """`args` of the application in a Serve config file, or words `name=value` of `serve run`."""

    config: Annotated[
        tuple[Path, ...], BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given)
    ] = Field(
        min_length=1, description="The server's configuration file, at this path on each node; one for each base."
    )
    home: Path = Field(Path("var"), description="The state folder that all nodes share.")
    replicas: int = Field(2, ge=0, description="Servers with an engine each, for each base.")
    max_replicas: int | None = Field(None, ge=1, description="Most of them; default: always `replicas`.")
    num_cpus: int = Field(1, ge=1, description="Cores of a replica.")
    num_gpus: int = Field(0, ge=0, description="GPUs of a replica.")


def build(args: dict[str, Any]) -> Application:
    """The application of `serve run serve.cluster.application:build config=config/serve.yaml home=var`.

    Raises:
        ConfigError: The server's configuration is wrong.
        ClusterError: It is for a single server only.
    """
    given = ApplicationArguments.model_validate(args)
    configs = [load_serve(file) for file in given.config]
    numbers = given.replicas, given.max_replicas, given.num_cpus, given.num_gpus
    return bind(make_settings(configs, Home(given.home), *numbers))


def make_settings(
    configs: Sequence[ServeConfig],
    home: Home,
    num_replicas: int,
    max_replicas: int | None,
    num_cpus: int,
    num_gpus: int = 0,
    routing: Routing = "affinity",
) -> tuple[ClusterSettings, ...]:
    """What every replica is told, for each base.

    Raises:
        ClusterError: A configuration is for a single server only, or the bases or numbers do not go together.
    """
    check_bases(configs)
    check_numbers(num_replicas, max_replicas)
    for config in configs:
        if config.metrics_port is not None:
            raise ClusterError(
                f"`metrics_port` {config.metrics_port} is for a single server: replicas on one node cannot share it. "
                "Remove it; `/metrics` of the endpoint has the metrics of all replicas."
            )
    made: list[ClusterSettings] = []
    for number, config in enumerate(configs):
        keys_file = config.keys_file.resolve() if config.keys_file else None
        own = ClusterSettings(
            config.model_copy(update={"keys_file": keys_file}),
            home.root.resolve(),
            home_id(home),
            installed_versions(),
            num_replicas,
            num_cpus,
            num_gpus,
            routing,
            max_replicas,
        )
        made.append(replace(own, first_core=number * own.most_replicas * num_cpus))
    return tuple(made)


def bind(settings: Sequence[ClusterSettings]) -> Application:
    """The deployments and who calls whom."""
    deployment = cast(Any, serve.deployment)  # its types are those of a decorator
    limits = deployment(
        KeyLimits, name="KeyLimits", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_WAITS_HERE
    ).bind()
    replicas = [_replicas(own).bind(own, limits) for own in settings]
    drain_s = max(_drain_s(own) for own in settings)
    ingress = deployment(
        Ingress,
        name="Ingress",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_WAITS_HERE,
        **_draining(drain_s),
    )
    return cast(Application, ingress.bind(tuple(settings), *replicas, worker=_worker(settings[0])))


def _worker(settings: ClusterSettings) -> Any:
    """The deployment of the job worker; None where the first base's configuration starts none."""
    jobs = settings.config.jobs
    if not (jobs.enabled and jobs.worker):
        return None
    deployment = cast(Any, serve.deployment)(
        JobsWorker,
        name="JobsWorker",
        ray_actor_options={"num_cpus": reserved_cpus(settings.config)},
        **_draining(_WORKER_ENDS_S),
    )
    return deployment.bind(settings.config, settings.home)


def _replicas(settings: ClusterSettings) -> Any:
    """The deployment of one base."""
    config = settings.config
    options: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if settings.max_replicas is not None:
        asked = config.autoscaling.model_dump()
        options = {"autoscaling_config": autoscaling_options(settings.num_replicas, settings.max_replicas, **asked)}
    return cast(Any, serve.deployment)(
        Replica,
        name=settings.deployment,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=_WAITS_HERE,
        max_constructor_retry_count=1,
        health_check_period_s=2.0,
        request_router_config={
            "request_router_class": "serve.cluster.router:AffinityRouter",
            "request_router_kwargs": {"base_model": config.served_model_name, "routing": settings.routing},
            "request_routing_stats_period_s": _REPORT_EVERY_S,
        },
        **options,
        **_draining(_drain_s(settings)),
    )


def _drain_s(settings: ClusterSettings) -> float:
    """A replica that is no longer needed answers all that it has; at the end of the command it gets less."""
    config = settings.config
    return config.drain_timeout_s if settings.max_replicas is None else config.request_timeout_s


def _draining(timeout_s: float) -> dict[str, float]:
    return {"graceful_shutdown_wait_loop_s": 0.5, "graceful_shutdown_timeout_s": max(1.0, timeout_s)}
