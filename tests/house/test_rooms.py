"""Each folder of code says what it is for, and names what to start from."""

import re

from tests.house.test_imports import all_modules
from tests.tracked_files import ROOT

ROOMS = sorted(
    path
    for package in ("adapters", "loadtest", "quality", "serve", "train")
    for path in (ROOT / package).rglob("__init__.py")
)


def named_elsewhere(room):
    """Names in the docstring of a room's `__init__.py` that none of its modules defines."""
    code = "".join(module.read_text() for module in room.parent.rglob("*.py") if module != room)
    defined = set(re.findall(r"^(?:class |def |async def )?(\w+)(?: =|:|\()", code, re.MULTILINE))
    return [name for name in re.findall(r"`(\w+)`", room.read_text()) if name not in defined]


def test_what_a_room_names_is_defined_in_it():
    assert {str(room): found for room in ROOMS if (found := named_elsewhere(room))} == {}


def test_each_room_says_what_it_is_for():
    assert [str(room) for room in ROOMS if len(room.read_text()) <= len('""""""')] == []


def test_no_two_classes_have_one_name():
    names = [name for path in all_modules() for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
