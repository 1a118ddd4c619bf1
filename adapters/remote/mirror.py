"""Mirror a remote store's histories into the local cache; they only grow, and local events are never lost."""

from adapters.errors import RemoteConflictError
from adapters.store.durable import replace_file, whole_lines
from adapters.store.folders import StoreFolders
from adapters.store.history import HISTORY_FILE, parse_history


def mirror_history(folders: StoreFolders, name: str, content: bytes, *, url: str) -> bool:
    """Update a local history from the remote's; returns whether it changed.

    A local history that is ahead, e.g. by a local rollback, is kept.

    Raises:
        IntegrityError: The remote history is broken.
        RemoteConflictError: Both have events that the other lacks.
    """
    remote = whole_lines(content)
    parse_history(remote, f"{name}/{HISTORY_FILE} at {url!r}")
    with folders.locked(name) as folder:
        local = local_history(folders, name)
        if local.startswith(remote):
            return False
        if not remote.startswith(local):
            raise grown_apart(name, local, remote, url=url)
        replace_file(folder / HISTORY_FILE, remote)
    return True


def local_history(folders: StoreFolders, name: str) -> bytes:
    """The complete lines of a local history; empty if the adapter does not exist."""
    path = folders.adapter(name) / HISTORY_FILE
    return whole_lines(path.read_bytes()) if path.exists() else b""


def grown_apart(name: str, local: bytes, remote: bytes, *, url: str) -> RemoteConflictError:
    """The error that says where two histories diverge."""
    pairs = zip(local.splitlines(), remote.splitlines(), strict=False)
    num_common = next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), 0)
    return RemoteConflictError(
        f"The histories of {name!r} here and at {url!r} diverge after event {num_common}: each has events that the "
        f"other lacks. Keep one of them: to take the remote's, delete the local {name}/{HISTORY_FILE} and pull again."
    )
