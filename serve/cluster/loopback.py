"""The processes of a local Ray Serve listen on loopback only."""

from typing import Any

WORKER_HOOK = "serve.cluster.loopback.serve_on_loopback"
"""Ray calls it in each of its worker processes (`worker_process_setup_hook`)."""

_EVERYWHERE = "[::]"


def serve_on_loopback() -> None:
    """Bind the port by which deployments call each other to loopback: Ray Serve 2.60 has all addresses in its code."""
    import ray.serve._private.replica as module

    replaced: Any = module
    add_port = replaced.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        return int(add_port(server, address.replace(_EVERYWHERE, "127.0.0.1")))

    replaced.add_port_to_grpc_server = add_loopback_port
