"""Consoles are made in one place: rich's own break lines at 80 columns where there is no terminal."""

import ast

import pytest

from tests.test_house_imports import ROOT, all_modules

PLACE = ROOT / "config" / "terminal.py"
MADE = ("Console", "RichHandler")


def made_in(source):
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.id for call in calls if isinstance(call, ast.Name) and call.id in MADE]


def test_no_module_makes_a_console_of_its_own():
    others = [path for path in all_modules() if path != PLACE]
    assert [str(path) for path in others if made_in(path.read_text())] == []


@pytest.mark.parametrize("source", ["Console()", "f = lambda: Console(stderr=True)", "x(handlers=[RichHandler()])"])
def test_the_reader_sees_consoles(source):
    assert made_in(source)
