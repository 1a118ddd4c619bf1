"""Processes of the engine are forked from one that has imported vLLM: real processes."""

import json
import os
import subprocess
import sys
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from serve.engine.cpu import forks
from serve.engine.cpu.threads import own_cores
from tests.loadtest.bench.test_children import ended
from tests.tracked_files import ROOT

# Server, engine and worker, the last with a setting of OpenMP as vLLM's. Each prints its id, its parent's, what it has
# imported, two variables, its main thread's cores and how many threads OpenMP has, then waits.
GENERATIONS = """
import ctypes, json, os, sys, time
from serve.engine.cpu import forks
from serve.engine.parent import end_with_parent

def live(generation):
    end_with_parent()
    found = {"pid": os.getpid(), "parent": os.getppid(), "imported": "vllm.v1.worker.cpu_worker" in sys.modules}
    found |= {name: os.environ.get(name) for name in ("SET_LATER", "LD_PRELOAD")}
    found["cores"] = sorted(os.sched_getaffinity(0))
    if generation == 2:
        openmp = ctypes.CDLL(None)
        found["threads"], found["blocktime"] = openmp.omp_get_max_threads(), openmp.kmp_get_blocktime()
    print(json.dumps(found), flush=True)
    if generation == 1 and "KMP_BLOCKTIME" in forks._server_variables:
        os.environ |= {name: forks._server_variables[name] for name in ("OMP_NUM_THREADS", "KMP_AFFINITY")}
    if generation < 2:
        forks._CONTEXT.Process(target=live, args=(generation + 1,)).start()
    time.sleep(120)

if __name__ == "__main__":
    forks.start_fork_server()
    os.environ["SET_LATER"] = "yes"
    live(0)
"""


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a process to fork from, which was started with the variables that this one has."""
    pytest.importorskip("vllm.utils.system_utils", reason="vllm is not installed")
    read: dict[str, str] = {"LD_PRELOAD": "allocator.so", "TORCHINDUCTOR_COMPILE_THREADS": "1", "KMP_BLOCKTIME": "5"}
    path = tmp_path / "socket"
    path.touch()
    monkeypatch.setattr(os, "environ", {"SET_LATER": "yes", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"} | read)
    monkeypatch.setattr(forks, "_server_variables", dict(read))
    monkeypatch.setitem(vars(forkserver._forkserver), "_forkserver_address", str(path))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not 2 <= len(own_cores()) <= 4, reason="with other numbers of cores GNU's OpenMP is used")
def test_engine_and_worker_are_forked_with_the_environment_of_who_starts_them(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    program = tmp_path / "program.py"
    program.write_text(GENERATIONS)
    ours = {*forks._IMPORT_VARIABLES, *forks._OPENMP_VARIABLES, "VLLM_CPU_OMP_THREADS_BIND"}
    given = {name: value for name, value in os.environ.items() if name not in ours}  # vLLM has set some in this process
    given |= {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=given) as process:
        assert process.stdout is not None
        lines = (line for line in process.stdout if line.startswith("{"))
        printed = [json.loads(line) for line in islice(lines, 3)]
        process.kill()
        assert len(printed) == 3, f"{len(printed)} of three processes came so far"
        server, engine, worker = printed
        assert ended([engine["pid"], worker["pid"], engine["parent"]])
    assert [each["imported"] for each in (server, engine, worker)] == [False, True, True]
    assert engine["parent"] == worker["parent"] != server["pid"]
    assert engine["SET_LATER"] == worker["SET_LATER"] == "yes"
    assert engine["LD_PRELOAD"] == server["LD_PRELOAD"]
    cores = own_cores()
    assert engine["cores"] == server["cores"]
    assert (worker["cores"], worker["threads"], worker["blocktime"]) == ([cores[0]], len(cores), 5)


@pytest.mark.slow
def test_a_server_that_fails_to_start_leaves_nothing_that_imports() -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    program = (
        "from multiprocessing import forkserver; from serve.engine.cpu import forks; forks.start_fork_server(); "
        "print(forkserver._forkserver._forkserver_pid, flush=True); raise SystemExit('failed')"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        importing = int(process.stdout.readline())
        process.wait(timeout=60)
        assert ended([importing], timeout_s=3)  # to import takes longer


def test_with_the_same_variables_a_process_is_forked(socket: Path) -> None:
    assert forks.process_context().get_start_method() == "forkserver"


def test_openmps_variables_are_of_the_worker_alone(socket: Path) -> None:
    del os.environ["KMP_BLOCKTIME"]
    assert forks.process_context().get_start_method() == "forkserver"


@pytest.mark.parametrize(
    "change",
    [{"LD_PRELOAD": "another.so"}, {"KMP_BLOCKTIME": "200"}, {"OMP_NUM_THREADS": "1"}, {"GOMP_CPU_AFFINITY": "0 1"}],
)
def test_another_variable_takes_vllms_own_way_and_is_named(
    socket: Path, change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    os.environ |= change
    assert forks.process_context().get_start_method() == "spawn"
    assert next(iter(change)) in caplog.text


def test_a_socket_that_is_gone_takes_vllms_own_way(socket: Path) -> None:
    socket.unlink()
    assert forks.process_context().get_start_method() == "spawn"


@pytest.mark.parametrize(
    ("cores", "preloaded", "threads"), [("0,2", "libiomp5.so", "2"), ("0-3", "libiomp5.so", None), ("0,2", "", None)]
)
def test_openmp_is_set_up_as_for_the_model(cores: str, preloaded: str, threads: str | None) -> None:
    found = forks._worker_openmp({"VLLM_CPU_OMP_THREADS_BIND": cores, "LD_PRELOAD": preloaded})
    assert found.get("OMP_NUM_THREADS") == threads
    assert ("[0,2]" in found.get("KMP_AFFINITY", "")) is (threads is not None)


def test_nothing_is_started_without_vllm_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_is_cpu_build", lambda: False)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: pytest.fail("started"))
    forks.start_fork_server()
    assert forks._server_variables is None


def test_where_it_cannot_be_started_vllms_own_way_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError("AF_UNIX path too long")

    before = dict(os.environ)
    monkeypatch.setattr(forks, "_is_cpu_build", lambda: True)
    monkeypatch.setattr(forks, "_folder", Path)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refused)
    forks.start_fork_server()
    assert forks._server_variables is None
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
    assert forks._ld_preload(given).replace(f"{tmp_path}/", "") == preloaded
