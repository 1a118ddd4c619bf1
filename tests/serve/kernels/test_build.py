"""Compiling the operator: cached by what it is made of, and never a reason not to serve."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.kernels import build


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build.load_kernels.cache_clear()
    yield
    build.load_kernels.cache_clear()


def test_without_a_compiler_plain_torch_computes_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not build.load_kernels()
    assert "there is no C++ compiler ('no-such-compiler') here" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    with caplog.at_level(logging.WARNING):
        assert not build.load_kernels()
    assert "LoRA is computed by plain torch" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
    assert not [folder for folder in tmp_path.rglob("tmp*") if folder.is_dir()]


def test_a_change_of_the_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library_file()
    changed = tmp_path / "lora.cpp"
    changed.write_text("// another\n")
    monkeypatch.setattr(build, "_SOURCES", (changed, *build._SOURCES[1:]))
    assert build.library_file() != before


def test_the_tool_that_runs_the_compilers_ends_with_this_process(tmp_path: Path) -> None:
    with build._ninja_on_path(tmp_path):
        ninja = shutil.which("ninja")
        assert ninja == str(tmp_path / "bin" / "ninja")
        told = subprocess.run([ninja, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout[0].isdigit()
