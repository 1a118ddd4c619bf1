"""Continuous integration and the commit hooks run what a contributor runs."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from tests.tracked_files import ROOT, tracked_files

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def make_targets(text: str) -> list[str]:
    return re.findall(r"^\s*make ([a-z-]+)", text, flags=re.MULTILINE)


def test_every_target_is_phony() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[0].split()
    assert sorted(phony) == sorted(TARGETS)


def test_the_workflow_runs_only_targets_of_the_makefile() -> None:
    commands = [step["run"] for step in STEPS if "run" in step]
    assert commands
    assert [command for command in commands if not set(make_targets(command)) & TARGETS] == []


@pytest.mark.parametrize("target", ["check", "docs", "test"])
def test_the_script_and_the_workflow_run_each_check(target: str) -> None:
    assert target in make_targets((ROOT / ".ci/run").read_text())
    assert target in [name for step in STEPS for name in make_targets(step.get("run", ""))]


def test_every_target_that_contributing_names_exists() -> None:
    named = set(make_targets((ROOT / "CONTRIBUTING.md").read_text()))
    assert {"setup", "check", "docs", "test-fast"} <= named
    assert named <= TARGETS


def test_every_action_is_pinned_to_a_commit() -> None:
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []


def test_hooks_run_the_locked_tools_of_make_check() -> None:
    tools = [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in HOOKS]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(tools) <= {Requirement(line).name for line in extras["dev"]}
    assert [tool for tool in tools if f"$(BIN)/{tool}" not in MAKEFILE] == []
    assert {hook["language"] for hook in HOOKS} == {"system"}


def test_every_issue_form_has_a_required_answer() -> None:
    forms = [path for path in tracked_files() if path.match(".github/ISSUE_TEMPLATE/*.yml") and path.stem != "config"]
    parsed = [yaml.safe_load((ROOT / form).read_text()) for form in forms]
    assert parsed
    assert [form["name"] for form in parsed if not {"description", "body"} <= form.keys()] == []
    assert [form["name"] for form in parsed if not any("validations" in field for field in form["body"])] == []
