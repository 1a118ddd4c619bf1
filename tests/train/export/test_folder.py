import errno

import pytest

from adapters.errors import StoreDiskError
from train.export.folder import output_folder


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    with pytest.raises(StoreDiskError, match="No space left on device"), output_folder(tmp_path / "out", force=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def fill_halfway(out):
    with output_folder(out, force=True) as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        fill_halfway(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
