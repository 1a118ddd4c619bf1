"""What docs/architecture.md names exists: files and folders, and in each file the names beside it."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.house.test_imports import PACKAGES
from tests.house.test_rooms import ROOMS
from tests.tracked_files import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PATH = re.compile(r"`((?:\w+/)+[\w.-]*|lorikeet\.py)`")
NAME_IN_FILE = re.compile(r"`(\w+)(?:\.(\w+))?` (?:\(|(?:in|of) )`((?:\w+/)+\w+\.py)`")


@cache
def defined_in(path: Path) -> set[str]:
    """Functions, classes, their methods and fields, and top-level variables of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_path_exists() -> None:
    paths = set(PATH.findall(PAGE))
    assert len(paths) > 100
    assert [path for path in sorted(paths) if not path.startswith("var/") and not (ROOT / path).exists()] == []


def test_every_name_is_defined_in_its_file() -> None:
    named = {(name, path) for *names, path in NAME_IN_FILE.findall(PAGE) for name in names if name}
    assert [each for each in sorted(named) if each[0] not in defined_in(ROOT / each[1])] == []


def test_names_are_found() -> None:
    assert ("choose", "", "adapters/release/traffic.py") in NAME_IN_FILE.findall(PAGE)
    assert len(NAME_IN_FILE.findall(PAGE)) > 30


def test_the_table_of_rooms_names_each_room() -> None:
    section = PAGE.partition("\n## The rooms\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE))
    rooms = {str(path.parent.relative_to(ROOT)) for path in ROOMS}
    whole = {room for room in rooms if "/" not in room and any(other.startswith(f"{room}/") for other in named)}
    assert rooms - whole <= named
    assert named <= rooms | set(PACKAGES)
