"""The locks hold the tools that build the documentation."""

import tomllib

import pytest
from packaging.requirements import Requirement

from requirements.lock import ROOT, requirements


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_tool_of_the_docs_is_locked_at_an_allowed_version(device: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "requirements" / f"{device}.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [Requirement(line) for line in extras["docs"]]
    assert [str(tool) for tool in wanted if not tool.specifier.contains(locked.get(tool.name, ""))] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_lock_is_resolved_with_the_tools_of_the_docs(device: str) -> None:
    assert [line for line in requirements(device) if line.startswith("zensical")]
