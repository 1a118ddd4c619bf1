"""What keeps others from a local Ray Serve."""

from serve.cluster.loopback import WORKER_HOOK, serve_on_loopback


def test_ray_finds_the_hook_of_its_workers():
    assert f"{serve_on_loopback.__module__}.{serve_on_loopback.__name__}" == WORKER_HOOK


def test_ray_serve_has_what_the_hook_replaces():
    import inspect

    from ray.serve._private import replica

    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica)
