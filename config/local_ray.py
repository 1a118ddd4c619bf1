"""Ray for several commands: a local one that other users and hosts cannot reach, or the cluster at an address."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib.util import find_spec

from config.errors import RayError

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 128 << 20
_CONNECT_TIMEOUT_S = 5.0


def check_ray(address: str | None) -> None:
    """Check that Ray is installed and that somebody answers at the address, if there is one. Starts nothing.

    Raises:
        RayError: One of them is not so.
    """
    if find_spec("ray") is None:
        raise RayError('`--cluster ray` needs Ray, which is not installed. Install it: pip install "lorikeet[ray]"')
    if address is not None:
        _check_address(address)


@contextmanager
def connected_ray(address: str | None, namespace: str, worker_hook: str | None = None) -> Iterator[None]:
    """Connected to Ray until the block ends; with it ends a local one, and nothing else.

    Args:
        address: Of a running cluster; None starts one on this machine.
        worker_hook: Ray calls it in each process of a local one (`worker_process_setup_hook`).

    Raises:
        RayError: No cluster answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    if address is None:
        set_local_environment()
    import ray

    with _same_signals():
        if address is not None:
            _connect(address, namespace)
        else:
            _start(namespace, worker_hook)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, namespace: str) -> None:
    import ray

    try:
        ray.init(address=address, namespace=namespace)
    except (ConnectionError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise RayError(f"No Ray cluster answers at {address!r} (RAY_ADDRESS): {first_line}") from error


def _start(namespace: str, worker_hook: str | None) -> None:
    import ray

    logger.info("Starting a local Ray")
    ray.init(
        address="local",
        namespace=namespace,
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        runtime_env={"worker_process_setup_hook": worker_hook} if worker_hook else None,
    )


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and then ends without a word; the command's own handlers come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_local_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Environment of a local Ray and its processes; call before ray is imported.

    Whoever reaches one of its ports may run code there. Ray replaces a loopback address by one of the network, unless
    it is told not to build clusters, which the variable does on Linux as well.
    """
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    environment["RAY_AUTH_MODE"] = "token"
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment.setdefault("RAY_worker_niceness", "0")  # else 15: anything else on the machine would go first


def _check_address(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # such as `auto`, which Ray looks up on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RayError(
            f"No Ray cluster answers at {address!r} ({error}). Correct RAY_ADDRESS, or unset it to start a local Ray."
        ) from error
