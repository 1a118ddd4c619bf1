"""Who uses a version: known while it lives, forgotten when it dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import AdapterInUseError
from adapters.reference import Target
from adapters.store.store import AdapterStore
from adapters.store.usage import in_use, users
from tests.peft_folders import draft_for, write_peft_folder

MEDICAL = Target("medical", 1)

HOLDER = """
import sys, time
from pathlib import Path
from adapters.reference import Target
from adapters.store.usage import in_use
with in_use(Path(sys.argv[1]), Target("medical", 1), "a server"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_every_user_is_named_until_it_is_done(tmp_path: Path) -> None:
    with in_use(tmp_path, MEDICAL, "server on port 1"), in_use(tmp_path, MEDICAL, "server on port 2"):
        assert sorted(users(tmp_path, MEDICAL)) == ["server on port 1", "server on port 2"]
        assert users(tmp_path, Target("medical", 2)) == []
    assert users(tmp_path, MEDICAL) == []


def test_a_killed_process_uses_nothing(tmp_path: Path, store: AdapterStore) -> None:
    folder = write_peft_folder(tmp_path / "made")
    store.publish(folder, draft_for(folder))
    command = [sys.executable, "-c", HOLDER, str(store.root)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(AdapterInUseError, match="a server"):
        store.remove(MEDICAL)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    store.remove(MEDICAL)
    assert store.versions("medical") == []
