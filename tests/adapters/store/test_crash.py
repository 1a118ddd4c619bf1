"""Processes that are killed, and disks that fill up, at every single step of a change to the store.

Run as a script, this file is the process that it happens to. The steps are not listed anywhere: an audit hook sees
each operation that changes the disk, and the n-th copy of the process is struck before the n-th of them.
"""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapters.errors import StoreDiskError
from adapters.reference import Target
from adapters.release.traffic import Split
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60
UNTOUCHED, STRUCK, UNHARMED = 0, 3, 4

CREATING = {"os.mkdir", "os.rename"}
DELETING = {"os.remove", "os.rmdir"}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT

OLD, NEW = ({"stable": 2}, Split()), ({"stable": 1, "canary": 2}, Split(0.5))


def change(store: AdapterStore, action: str, folder: Path) -> None:
    """The change to a store that is interrupted."""
    if action == "move":
        store.set_aliases("medical", NEW[0], canary_weight=NEW[1].canary_weight)
    elif action == "remove":
        store.remove(Target("medical", 1))
    else:
        publish(store, folder)


def publish(store: AdapterStore, folder: Path) -> int:
    draft = ManifestDraft.model_validate_json((folder / "draft.json").read_bytes())
    return store.publish(folder / "source", draft).version


class Fault:
    """Strikes once, before the n-th operation that changes the disk."""

    def __init__(self, step: int, kinds: set[str], strike: Callable[[], None]) -> None:
        self._left, self._kinds, self._strike = step, kinds, strike
        self._fsync = os.fsync
        os.fsync = self._counted_fsync
        sys.addaudithook(self._see)

    @property
    def has_happened(self) -> bool:
        return self._left <= 0

    def _see(self, name: str, arguments: tuple[object, ...]) -> None:
        is_write = name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITE_FLAGS
        if is_write or name in self._kinds:
            self._count()

    def _counted_fsync(self, fd: "FileDescriptorLike") -> None:
        self._count()
        self._fsync(fd)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._strike()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def struck_process(store: AdapterStore, action: str, fault: str, step: int, folder: Path) -> int:
    """Exit code of the change: `UNTOUCHED`, `STRUCK`, or `UNHARMED` where it needed nothing of what failed."""
    kinds, strike = {"killed": (CREATING | DELETING, kill_self), "full": (CREATING, fill_disk)}[fault]
    struck = Fault(step, kinds, strike)
    try:
        change(store, action, folder)
    except StoreDiskError as error:
        store.root.with_suffix(".error").write_text(str(error))
        return STRUCK
    return UNHARMED if struck.has_happened else UNTOUCHED


def main(action: str, fault: str, folder: Path) -> None:
    """Strike one forked process after the other, each with its own copy of the store, until one comes through."""
    for step in itertools.count(1):
        root = folder / "struck" / f"{step:03}"
        shutil.copytree(folder / "before", root)
        process_id = os.fork()
        if process_id == 0:
            os._exit(struck_process(AdapterStore(root), action, fault, step, folder))
        _, status = os.waitpid(process_id, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code in (UNTOUCHED, UNHARMED):
            shutil.rmtree(root)
        if exit_code == UNTOUCHED:
            return


@pytest.fixture
def struck(tmp_path, peft_folder):
    """Roots of the stores that an action left at each of its steps."""
    from tests.peft_folders import draft_for

    shutil.copytree(peft_folder, tmp_path / "source")
    (tmp_path / "draft.json").write_text(draft_for(peft_folder).model_dump_json())
    (tmp_path / "before").mkdir()

    def strike(action: str, fault: str) -> list[Path]:
        if action != "first publish":
            store = AdapterStore(tmp_path / "before")
            for _ in range(2):
                publish(store, tmp_path)
            store.promote("medical", 2)
        command = [sys.executable, __file__, action, fault, str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(command, check=True, timeout=TIMEOUT_S, env=environment)
        return sorted(path for path in (tmp_path / "struck").iterdir() if path.is_dir())

    return strike


def files_in(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def verify_all(store: AdapterStore) -> None:
    for version in store.versions("medical"):
        store.verify(Target("medical", version))


def check_usable(root: Path, folder: Path) -> None:
    """Readable now, and after the next publish and gc as if nothing had happened."""
    store = AdapterStore(root)
    verify_all(store)
    seen = [*store.versions("medical"), *(event.version or 0 for event in store.history("medical"))]
    assert publish(store, folder) == max(seen, default=0) + 1
    store.gc()
    assert {e.version for e in store.history("medical") if e.kind == "published"} >= set(store.versions("medical"))
    assert sorted(path.name for path in (root / ".staging").iterdir()) == [".lock"]
    names = {path.name for path in (root / "medical").iterdir()}
    assert names == {".lock", "history.jsonl", *map(str, store.versions("medical"))}
    verify_all(store)


@pytest.mark.parametrize(
    ("action", "versions", "traffic"),
    [
        ("first publish", [[], [1]], [({}, Split())]),
        ("publish", [[1, 2], [1, 2, 3]], [OLD]),
        ("move", [[1, 2]], [OLD, NEW]),
        ("remove", [[1, 2], [2]], [OLD]),
    ],
)
def test_a_process_killed_at_any_step_leaves_a_whole_store(struck, tmp_path, action, versions, traffic):
    roots = struck(action, "killed")
    stores = [AdapterStore(root) for root in roots]
    assert len(roots) >= 5
    assert all(store.versions("medical") in versions for store in stores)
    assert all((store.aliases("medical"), store.split("medical")) in traffic for store in stores)
    for root in roots:
        check_usable(root, tmp_path)


def test_some_process_was_killed_between_the_rename_and_its_event(struck):
    stores = [AdapterStore(root) for root in struck("publish", "killed")]
    assert any(store.versions("medical") == [1, 2, 3] and len(store.history("medical")) == 3 for store in stores)


@pytest.mark.parametrize("action", ["first publish", "publish", "move"])
def test_a_disk_that_fills_up_at_any_step_leaves_no_trace_and_is_named(struck, tmp_path, action):
    roots = struck(action, "full")
    before = files_in(tmp_path / "before")
    assert len(roots) >= 5
    for root in roots:
        assert files_in(root) == before
        message = root.with_suffix(".error").read_text()
        assert message.startswith(f"Cannot write to the disk of {str(root)!r}: No space left on device")
        check_usable(root, tmp_path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
