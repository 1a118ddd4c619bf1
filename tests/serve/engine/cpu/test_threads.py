"""Which cores the engine computes on."""

from pathlib import Path

import pytest

from serve.engine.cpu import threads as cpu


def topology(folder: Path, siblings: dict[int, str]) -> Path:
    for number, text in siblings.items():
        path = folder / f"cpu{number}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(text + "\n")
    return folder


def test_one_logical_cpu_of_each_physical_core(tmp_path: Path) -> None:
    folder = topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert cpu.physical_cores({0, 1, 2, 3}, folder) == (0, 1)
    assert cpu.physical_cores({2, 3}, folder) == (2, 3)


def test_where_the_kernel_tells_nothing_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert cpu.physical_cores({5, 1}, tmp_path) == (1, 5)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with Intel's OpenMP, on a machine with two cores."""
    path = tmp_path / "lib" / "libiomp5.so"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(cpu, "physical_cores", lambda logical: tuple(sorted(logical)))
    return path


def test_all_of_few_cores_compute_with_the_runtime_that_can_share(runtime: Path) -> None:
    environment = {"LD_PRELOAD": "libtcmalloc.so"}
    cpu.set_cpu_environment(environment)
    assert environment == {"VLLM_CPU_OMP_THREADS_BIND": "0,1", "LD_PRELOAD": f"libtcmalloc.so:{runtime}"}


@pytest.mark.parametrize("own", [{"VLLM_CPU_OMP_THREADS_BIND": "auto"}, {"LD_PRELOAD": "/usr/lib/libgomp.so.1"}])
def test_what_the_user_set_stays(runtime: Path, own: dict[str, str]) -> None:
    environment = dict(own)
    cpu.set_cpu_environment(environment)
    assert environment == own


def test_without_the_runtime_or_with_many_cores_vllm_decides(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    cpu.set_cpu_environment(environment)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    runtime.unlink()
    cpu.set_cpu_environment(environment)
    assert environment == {}
