"""`lorikeet serve --cluster ray`: a local Ray, or the one at `RAY_ADDRESS`, with the application until a signal."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from config.home import Home
from config.local_ray import check_ray, connected_ray
from config.serve import ServeConfig
from serve.cluster.affinity import Routing
from serve.cluster.bases import check_bases
from serve.cluster.errors import ClusterError
from serve.cluster.jobs_worker import reserved_cpus
from serve.cluster.loopback import WORKER_HOOK
from serve.cluster.settings import ClusterSettings, check_jobs, check_node, check_numbers, num_nodes
from serve.listening import listen

logger = logging.getLogger(__name__)

APPLICATION = "lorikeet"
_CHECK_TIMEOUT_S = 60.0
_REMOVE_S = 10.0
_ASK_EVERY_S = 0.2
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""For Ray Serve's own log lines: the replicas log requests themselves."""


def run_cluster(
    configs: Sequence[ServeConfig],
    home: Home,
    num_replicas: int,
    routing: Routing = "affinity",
    address: str | None = None,
    max_replicas: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; ends the Ray that it has started, and nothing else.

    Args:
        configs: One for each base.
        num_replicas: Of each base; with `max_replicas` the fewest.
        address: Of a running cluster; None starts one on this machine.

    Raises:
        ClusterError: The cluster cannot serve this; nothing has been started then.
        AddressError: Another program listens on the port.
        ConfigError: The configuration is wrong.
    """
    check_ray(address)
    check_numbers(num_replicas, max_replicas)
    check_bases(configs)
    most = max_replicas or num_replicas
    if address is None:
        _check_cpus(most, configs, os.cpu_count() or 1, "This machine")
    host, port = configs[0].host, configs[0].port
    with ExitStack() as opened:
        for each in listen(host, port):
            each.close()
        ended = opened.enter_context(_signals())
        opened.enter_context(connected_ray(address, APPLICATION, WORKER_HOOK))
        settings = _settings(configs, home, num_replicas, max_replicas, routing)
        check_jobs(is_enabled=any(config.jobs.enabled for config in configs), num_nodes=num_nodes())
        _check_nodes(settings[0])
        opened.enter_context(_application(settings, is_local=address is None))
        shown = f"{num_replicas} to {max_replicas}" if max_replicas else str(num_replicas)
        of_bases = f" of each of {len(configs)} bases" if len(configs) > 1 else ""
        logger.info("Ready: %s replicas%s at http://%s:%d", shown, of_bases, host, port)
        ended.wait()


def _check_cpus(num_replicas: int, configs: Sequence[ServeConfig], num_cpus: int, where: str) -> None:
    num_bases, reserved = len(configs), reserved_cpus(configs[0])
    if num_bases * num_replicas <= num_cpus - reserved:
        return
    of_jobs = f" without the {reserved} of `jobs.cpus`" if reserved else ""
    cores = f"{where} has {num_cpus - reserved} CPU cores{of_jobs}, too few for {num_replicas} replicas"
    if num_bases == 1:
        raise ClusterError(f"{cores}: each needs one. Start fewer: `--replicas {max(1, num_cpus - reserved)}`.")
    raise ClusterError(f"{cores} of each of {num_bases} bases: each replica needs one. Start fewer, or fewer bases.")


class _Signals:
    """SIGINT and SIGTERM end the wait, or interrupt a start."""

    def __init__(self) -> None:
        self._is_over = threading.Event()

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def wait(self) -> None:
        self._is_over.wait()

    def _interrupt(self, *_: Any) -> None:
        raise KeyboardInterrupt


@contextmanager
def _signals() -> Iterator[_Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = _Signals()
    signals.install()
    try:
        yield signals
    except KeyboardInterrupt:
        logger.info("Ended")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(
    configs: Sequence[ServeConfig], home: Home, num_replicas: int, max_replicas: int | None, routing: Routing
) -> tuple[ClusterSettings, ...]:
    """The cores and GPUs of a cluster, shared evenly between replicas."""
    import ray

    from serve.cluster.application import make_settings

    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    _check_cpus(max_replicas or num_replicas, configs, num_cpus, "The cluster")
    num_cpus -= reserved_cpus(configs[0])
    most = len(configs) * (max_replicas or num_replicas)
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = max(1, min(num_cpus // most, largest))
    return make_settings(configs, home, num_replicas, max_replicas, share, min(1, num_gpus // most), routing)


def _check_nodes(settings: ClusterSettings) -> None:
    """Every node sees the state folder and has the same versions, before anything is deployed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    check = ray.remote(num_cpus=0)(_problem_of_node)
    asked = [
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            settings.home, settings.home_id, settings.versions, address
        )
        for node_id, address in nodes.items()
    ]
    problems = [problem for problem in ray.get(asked, timeout=_CHECK_TIMEOUT_S) if problem]
    if problems:
        raise ClusterError(problems[0])


def _problem_of_node(home: Path, home_id: str, versions: dict[str, str], node: str) -> str | None:
    try:
        check_node(home, home_id, versions, node)
    except ClusterError as error:
        return str(error)
    return None


@contextmanager
def _application(settings: Sequence[ClusterSettings], *, is_local: bool) -> Iterator[None]:
    """The application, ready; removed in the end, after its replicas have drained."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    from serve.cluster.application import bind

    config = settings[0].config
    serve.start(logging_config=_QUIET, http_options=HTTPOptions(host=config.host, port=config.port))
    try:
        serve.run(bind(settings), name=APPLICATION, route_prefix="/", logging_config=_QUIET)
        yield
    except RuntimeError as error:
        raise ClusterError(
            f"The replicas did not start; their log lines above say why. {_first_line(error)}"
        ) from error
    finally:
        _remove(max(own.config.drain_timeout_s for own in settings))
        if is_local:
            serve.shutdown()


def _remove(drain_s: float) -> None:
    """Remove the application; requests in flight get their time, and Ray a little more for each replica."""
    from ray.serve import delete, status

    delete(APPLICATION, _blocking=False)
    deadline_s = time.monotonic() + drain_s + _REMOVE_S
    while APPLICATION in status().applications and time.monotonic() < deadline_s:
        time.sleep(_ASK_EVERY_S)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
