"""Consoles are made in one place, which reads no markup: users' names, paths and texts hold brackets."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.house.test_imports import ROOT, all_modules

PLACE = ROOT / "config" / "terminal.py"
MADE = ("Console", "RichHandler")
READ_MARKUP = ("rich.markup", "rich.progress", "rich.prompt", "rich.status")
"""Of rich: they read markup whatever the console says, or exist for it."""
TAG = re.compile(r"\[/?(bold|dim|italic|red|green|yellow|blue|cyan|magenta)\b[^\[\]]*\]|\[/\]")


MENTION = re.compile(rf"{'|'.join(MADE)}|rich|markup|status|Panel|Spinner|{TAG.pattern}")
"""In every source that makes a console or has to do with markup."""


@cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(source))) if MENTION.search(source) else ()


def made_in(source: str) -> list[str]:
    calls = [node.func for node in nodes_of(source) if isinstance(node, ast.Call)]
    return [call.id for call in calls if isinstance(call, ast.Name) and call.id in MADE]


def markup_in(source: str) -> list[str]:
    """What reads or writes markup, as source."""
    return [ast.unparse(node) for node in nodes_of(source) if any(_reads_markup(node))]


def _reads_markup(node: ast.AST) -> Iterator[bool]:
    match node:
        case ast.ImportFrom(module="rich"):
            yield True  # `rich.print` and the like are consoles of rich's own
        case ast.ImportFrom(module=str(module)):
            yield module in READ_MARKUP
        case ast.Import(names=names):
            yield any(alias.name.split(".")[0] == "rich" for alias in names)
        case ast.Attribute(attr="from_markup") | ast.Call(func=ast.Attribute(attr="status")):
            yield True
        case ast.Call(func=ast.Name(id="Panel" | "Spinner"), keywords=keywords):
            yield any(each.arg in ("title", "subtitle", "text") and _is_plain(each.value) for each in keywords)
        case ast.keyword(arg="markup", value=ast.Constant(value=True)):
            yield True
        case ast.Constant(value=str(text)):
            yield TAG.search(text) is not None


def _is_plain(value: ast.expr) -> bool:
    """Whether it may be a text of a user: neither a constant nor a `Text`."""
    is_text = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Text"
    return not is_text and not isinstance(value, ast.Constant)


def test_no_module_makes_a_console_of_its_own():
    others = [path for path in all_modules() if path != PLACE]
    assert [str(path) for path in others if made_in(path.read_text())] == []


def test_no_module_uses_markup():
    found = {str(path): markup_in(path.read_text()) for path in all_modules()}
    assert {path: where for path, where in found.items() if where} == {}


@pytest.mark.parametrize("source", ["Console()", "f = lambda: Console(stderr=True)", "x(handlers=[RichHandler()])"])
def test_the_reader_sees_consoles(source: str) -> None:
    assert made_in(source)


@pytest.mark.parametrize(
    "source",
    [
        'print(f"[red]{name}[/] is gone")',
        'print("[bold green]done")',
        "from rich.markup import escape",
        "from rich import print",
        "import rich",
        "from rich.progress import Progress",
        "Text.from_markup(text)",
        'console.status("wait")',
        "console.print(text, markup=True)",
        "Panel(text, title=name)",
        "Spinner(name, text=text)",
    ],
)
def test_the_reader_sees_markup(source: str) -> None:
    assert markup_in(source)


@pytest.mark.parametrize("source", ['Panel(x, title="prompt")', "Panel(x, title=Text(name))", 'print(f"{a}[{b}]")'])
def test_the_reader_leaves_brackets_alone(source: str) -> None:
    assert markup_in(source) == []
