"""Who may import whom: DESIGN's borders, read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("adapters", "config", "demo", "loadtest", "quality", "serve", "train")
LEAVES = ("adapters", "config", "quality")
STAGES = ("train", "serve", "loadtest")


def modules_of(package):
    return sorted((ROOT / package).rglob("*.py"))


@cache
def imports_of(path):
    """Top-level names that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    relative = {node for node in nodes if isinstance(node, ast.ImportFrom) and node.level > 0}
    assert not relative, f"{path} imports relatively; write the package's name"
    absolute = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in plain | absolute}


def importers_of(names, modules):
    return [str(path.relative_to(ROOT)) for path in modules if imports_of(path) & set(names)]


def all_modules():
    return [path for package in PACKAGES for path in modules_of(package)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_no_other_package_but_config_on_its_command_line(leaf):
    others = set(PACKAGES) - {leaf}
    inner = [path for path in modules_of(leaf) if path.name != "cli.py"]
    outer = [path for path in modules_of(leaf) if path.name == "cli.py"]
    assert importers_of(others, inner) == []
    assert importers_of(others - {"config"}, outer) == []


@pytest.mark.parametrize("stage", STAGES)
def test_train_serve_and_loadtest_never_import_each_other(stage):
    assert importers_of(set(STAGES) - {stage}, modules_of(stage)) == []


def test_only_the_engine_and_its_kernels_import_vllm():
    doors = (ROOT / "serve" / "engine", ROOT / "serve" / "kernels")
    others = [path for path in all_modules() if not any(path.is_relative_to(door) for door in doors)]
    assert importers_of({"vllm"}, others) == []


def test_only_train_imports_the_training_libraries():
    others = [path for path in all_modules() if not path.is_relative_to(ROOT / "train")]
    assert importers_of({"trl", "peft", "bitsandbytes"}, others) == []


def test_nobody_imports_the_demo():
    others = [path for path in all_modules() if not path.is_relative_to(ROOT / "demo")]
    assert importers_of({"demo"}, others) == []


def test_the_reader_of_imports_sees_those_inside_functions(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import a.b as c\ndef f():\n    from d.e import g\n")
    assert imports_of(path) == {"a", "d"}
