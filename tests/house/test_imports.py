"""Who may import whom: DESIGN's borders, read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("adapters", "config", "demo", "loadtest", "quality", "serve", "train")
LEAVES = ("adapters", "config", "quality")
SHARED = {
    "config.sqlite_file",
    "quality.policy",
    "quality.grading.formula",
    "quality.grading.names",
    "quality.grading.template",
    "quality.metrics.settings",
    "quality.metrics.item",
    "quality.robustness.settings",
    "quality.robustness.change",
}
"""The modules that leaves share: settings that are published, what a scored question is, and how SQLite is written."""
STAGES = ("train", "serve", "loadtest")


def modules_of(package):
    return sorted((ROOT / package).rglob("*.py"))


@cache
def nodes_of(path):
    """Its imports."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def imports_of(path):
    """Top-level names that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    nodes = nodes_of(path)
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    relative = {node for node in nodes if isinstance(node, ast.ImportFrom) and node.level > 0}
    assert not relative, f"{path} imports relatively; write the package's name"
    absolute = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in plain | absolute}


def importers_of(names, modules):
    return [str(path.relative_to(ROOT)) for path in modules if imports_of(path) & set(names)]


def all_modules():
    return [path for package in PACKAGES for path in modules_of(package)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_no_other_package_but_config_on_its_command_line(leaf):
    inner = [path for path in modules_of(leaf) if path.name != "cli.py"]
    outer = [path for path in modules_of(leaf) if path.name == "cli.py"]
    assert packages_imported(inner) <= {leaf}
    assert packages_imported(outer) <= {leaf, "config"}


def packages_imported(modules):
    """Packages of ours that modules import, apart from the shared module."""
    names = {name for path in modules for name in modules_imported(path)} - SHARED
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", sorted(SHARED))
def test_a_module_that_leaves_share_imports_no_others_of_ours(module):
    assert modules_imported(ROOT / f"{module.replace('.', '/')}.py") <= SHARED


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


def room_of(module):
    """The folder of a module of ours, or the module itself where it lies in its package's top folder."""
    parts = module.split(".")
    path = ROOT.joinpath(*parts)
    folder = parts if path.is_dir() else parts[:-1]
    return ".".join(parts[:2] if len(folder) == 1 else folder)


@cache
def modules_imported(path):
    """Full names of our modules that one imports anywhere."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if is_module(name)}
            found |= modules or {node.module}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def rooms_imported(room):
    """Rooms that a room of `serve` and its inner rooms import, others than themselves."""
    found = {room_of(name) for path in modules_of(room.replace(".", "/")) for name in modules_imported(path)}
    return {name for name in found if name.startswith("serve.") and not f"{name}.".startswith(f"{room}.")}


def test_the_engine_knows_no_other_room_of_the_server():
    assert rooms_imported("serve.engine") <= {"serve.errors", "serve.kernels", "serve.records"}


def test_the_kernels_know_no_other_room():
    assert rooms_imported("serve.kernels") == set()


def test_the_api_is_known_only_to_the_application_and_its_assembly():
    users = [
        name_of(path) for path in modules_of("serve") if any("serve.api." in f"{m}." for m in modules_imported(path))
    ]
    assert {room_of(name) for name in users} - {"serve.api"} <= {
        "serve.jobs",
        "serve.app",
        "serve.build",
        "serve.cli",
        "serve.cluster",
    }


def test_the_cluster_is_known_only_to_the_command_line():
    users = [
        name_of(path)
        for path in modules_of("serve")
        if any("serve.cluster." in f"{m}." for m in modules_imported(path))
    ]
    assert {room_of(name) for name in users} - {"serve.cluster"} == {"serve.cli"}


def test_only_what_runs_in_a_cluster_imports_ray():
    rooms = ROOT / "serve" / "cluster", ROOT / "config" / "local_ray.py", ROOT / "train" / "cluster.py"
    others = [path for path in all_modules() if not any(path.is_relative_to(room) for room in rooms)]
    assert importers_of({"ray"}, others) == []


def test_the_limits_of_a_request_know_only_errors_and_the_engines_protocol():
    assert rooms_imported("serve.limits") <= {"serve.errors", "serve.engine"}


def test_the_monitor_reaches_the_server_through_its_protocol():
    plumbing = {"serve.background", "serve.clock", "serve.errors", "serve.records"}
    assert rooms_imported("serve.monitor") <= plumbing | {"serve.engine"}
    engines = {
        name for path in modules_of("serve/monitor") for name in modules_imported(path) if "serve.engine" in name
    }
    assert engines == {"serve.engine.protocol"}


def test_the_rooms_of_the_server_form_no_circle():
    rooms = {room_of(name_of(path)) for path in modules_of("serve")}
    graph = {room: rooms_imported(room) for room in rooms if room.count(".") == 1}
    assert without_circles({room: {".".join(name.split(".")[:2]) for name in found} for room, found in graph.items()})


def test_no_modules_import_each_other_in_a_circle():
    assert without_circles({name_of(path): modules_imported(path) for path in all_modules()})


def without_circles(graph):
    """Whether one can take away what imports nothing that is left until nothing is left."""
    left = dict(graph)
    while ends := [name for name, imported in left.items() if not imported & left.keys() - {name}]:
        for name in ends:
            del left[name]
    return not left


def test_a_circle_is_seen():
    assert not without_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()})


def test_the_reader_of_imports_sees_those_inside_functions(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import a.b as c\ndef f():\n    from d.e import g\n")
    assert imports_of(path) == {"a", "d"}
