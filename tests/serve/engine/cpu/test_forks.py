"""Processes of the engine are forked from one that has imported vLLM: real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve.engine.cpu import forks
from tests.loadtest.bench.test_children import ended
from tests.tracked_files import ROOT

# Server, engine and worker. Each prints its id, its parent's, what it has imported and two variables, then waits.
GENERATIONS = """
import json, os, sys, time
from serve.engine.cpu import forks
from serve.engine.parent import end_with_parent

def live(generation):
    end_with_parent()
    found = {"pid": os.getpid(), "parent": os.getppid(), "imported": "vllm.v1.worker.cpu_worker" in sys.modules}
    print(json.dumps(found | {name: os.environ.get(name) for name in ("SET_LATER", "LD_PRELOAD")}), flush=True)
    if generation < 2:
        forks._CONTEXT.Process(target=live, args=(generation + 1,)).start()
    time.sleep(600)

if __name__ == "__main__":
    forks.import_ahead()
    os.environ["SET_LATER"] = "yes"
    live(0)
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that are read as a process starts, and no others; those of a process to fork from."""
    read: dict[str, str] = {"LD_PRELOAD": "allocator.so", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    monkeypatch.setattr(os, "environ", {"SET_LATER": "yes"} | read)
    monkeypatch.setattr(forks, "_imported_with", dict(read))
    return read


@pytest.mark.slow
def test_engine_and_worker_are_forked_with_the_environment_of_who_starts_them(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    program = tmp_path / "program.py"
    program.write_text(GENERATIONS)
    given = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=given) as process:
        assert process.stdout is not None
        lines = (line for line in process.stdout if line.startswith("{"))
        server, engine, worker = (json.loads(next(lines)) for _ in range(3))
        process.kill()
        assert ended([engine["pid"], worker["pid"], engine["parent"]])
    assert [each["imported"] for each in (server, engine, worker)] == [False, True, True]
    assert engine["parent"] == worker["parent"] != server["pid"]
    assert engine["SET_LATER"] == worker["SET_LATER"] == "yes"
    assert engine["LD_PRELOAD"] == server["LD_PRELOAD"]


@pytest.mark.slow
def test_a_server_that_fails_to_start_leaves_nothing_that_imports() -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    program = (
        "from multiprocessing import forkserver; from serve.engine.cpu import forks; forks.import_ahead(); "
        "print(forkserver._forkserver._forkserver_pid, flush=True); raise SystemExit('failed')"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        importing = int(process.stdout.readline())
        process.wait(timeout=60)
        assert ended([importing], timeout_s=3)  # to import takes longer


def test_the_same_early_variables_are_forked(environment: dict[str, str]) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    assert forks.process_context().get_start_method() == "forkserver"


@pytest.mark.parametrize("change", [{"LD_PRELOAD": "another.so"}, {"OMP_NUM_THREADS": "1"}])
def test_another_early_variable_takes_vllms_own_way(environment: dict[str, str], change: dict[str, str]) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    os.environ |= change | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    assert forks.process_context().get_start_method() == "spawn"


def test_nothing_is_started_without_vllm_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_is_for_cpus", lambda: False)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: pytest.fail("started"))
    forks.import_ahead()
    assert forks._imported_with is None


def test_where_it_cannot_be_started_vllms_own_way_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError("AF_UNIX path too long")

    before = dict(os.environ)
    monkeypatch.setattr(forks, "_is_for_cpus", lambda: True)
    monkeypatch.setattr(forks, "_folder", Path)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refused)
    forks.import_ahead()
    assert forks._imported_with is None
    assert "AF_UNIX path too long" in caplog.text
    assert dict(os.environ) == before


def folders(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return {package: root / package for package in ("torch", "vllm")}


GOMP, SMALL, WHOLE = "torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4", "vllm/libs/libtcmalloc.so"


@pytest.mark.parametrize(
    ("given", "names", "preloaded"),
    [
        ("", ("torch.libs/libgomp-1.so.1", WHOLE), f"{WHOLE}:torch.libs/libgomp-1.so.1"),
        ("libiomp5.so", (GOMP, SMALL, WHOLE), f"{SMALL}:libiomp5.so"),
        ("libtcmalloc.so", (GOMP, SMALL), f"libtcmalloc.so:{GOMP}"),
        ("", (), ""),
    ],
)
def test_vllms_libraries_are_loaded_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, names: tuple[str, ...], preloaded: str
) -> None:
    monkeypatch.setattr(forks, "_folder", folders(tmp_path, names).__getitem__)
    assert forks._preloaded(given).replace(f"{tmp_path}/", "") == preloaded
