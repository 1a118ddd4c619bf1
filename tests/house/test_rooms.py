"""Each folder of code says what it is for, and names what to start from."""

import re

import pytest

from tests.house.test_imports import all_modules
from tests.tracked_files import ROOT

ROOMS = sorted(
    path
    for package in ("adapters", "loadtest", "quality", "serve", "train")
    for path in (ROOT / package).rglob("__init__.py")
)


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_what_a_room_names_is_defined_in_it(path):
    named = re.findall(r"`(\w+)`", path.read_text())
    code = "".join(module.read_text() for module in path.parent.rglob("*.py") if module != path)
    missing = [name for name in named if not re.search(rf"^(class|def|async def) {name}\b", code, re.MULTILINE)]
    assert missing == []
    assert len(path.read_text()) > len('""""""')


def test_no_two_classes_have_one_name():
    names = [name for path in all_modules() for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
