"""The table of what is changed in vLLM holds for the installed vLLM, is complete, and is what docs/engine.md shows.

`python -m tests.serve.engine.test_patches` writes the table into docs/engine.md.
"""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from serve.engine.cpu.threads import has_few_cores
from serve.engine.patches import CHANGES, Change, change_at
from serve.engine.plugin import ENGINE_VARIABLE
from tests.tracked_files import ROOT

PAGE = ROOT / "docs" / "engine.md"
BEGIN, END = "<!-- table of patches: python -m tests.serve.engine.test_patches -->\n\n", "\n<!-- end -->"
PLACES = [place for change in CHANGES for place in change.sources]

# In two processes, without our variable and with it, once vLLM has loaded its plugins: the source in each place, and
# whether it is ours. They are forked from one that has imported vLLM, which takes most of the time.
LOOK = f"""
import inspect, json, os
from vllm.plugins import load_general_plugins
from vllm.v1.engine.core import EngineCore
for marked in ("", "1"):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    if marked:
        os.environ[{ENGINE_VARIABLE!r}] = marked
    load_general_plugins()
    from serve.engine.patches import CHANGES
    from serve.engine.replace import source_sha256
    from tests.serve.engine.test_patches import owner_of
    found = {{}}
    for place in (place for change in CHANGES for place in change.sources):
        owner, name = owner_of(place)
        value = inspect.getattr_static(owner, name)
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        is_ours = value == "eager" or getattr(value, "__module__", "").startswith("serve.")
        found[place] = source_sha256(owner, name), is_ours
    print("found", json.dumps(found), flush=True)
    os._exit(0)
"""


def owner_of(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    *classes, name = path.split(".")
    owner = importlib.import_module(module)
    return (getattr(owner, classes[0]) if classes else owner), name


in_vllm = pytest.mark.slow  # a process that imports all of vLLM

Found = dict[str, tuple[str, bool]]


@pytest.fixture(scope="module")
def looked_at() -> list[Found]:
    """What is found in a vLLM that somebody else runs in our environment, and in an engine of ours."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.pop(ENGINE_VARIABLE, None)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line.removeprefix("found ") for line in finished.stdout.splitlines() if line.startswith("found ")]
    return [json.loads(line) for line in lines]


@pytest.fixture
def plain(looked_at: list[Found]) -> Found:
    return looked_at[0]


def table() -> str:
    """In Markdown, one row a place."""
    rows = ["| In vLLM | What happens without ours | Test | If vLLM's source differs |", "| --- | --- | --- | --- |"]
    for change in CHANGES:
        places = "<br>".join(f"`{place}`" for place in change.sources)
        how = "the start ends" if change.is_required else "vLLM's own stays, with a warning"
        rows.append(f"| {places} | {change.why} | `{change.test}` | {how} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "run: python -m tests.serve.engine.test_patches"


def test_no_place_has_two_entries() -> None:
    assert len(set(PLACES)) == len(PLACES)
    assert all(change_at(place) for place in PLACES)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change.sources)))
def test_each_entry_names_a_test_that_exists(change: Change) -> None:
    assert (ROOT / change.test).is_file()


@in_vllm
def test_the_installed_vllm_is_what_the_table_was_written_for(plain: Found) -> None:
    """Where it differs: read what has changed, mend ours, and write the new digits into serve/engine/patches.py."""
    recorded = {place: source for change in CHANGES for place, source in change.sources.items()}
    assert {place: source for place, (source, _) in plain.items()} == recorded


@in_vllm
def test_in_another_vllm_process_nothing_is_ours(plain: Found) -> None:
    assert [place for place, (_, is_ours) in plain.items() if is_ours] == []


@in_vllm
def test_in_an_engine_of_ours_every_change_is_made(looked_at: list[Found]) -> None:
    marked = looked_at[1]
    elsewhere = {place for change in CHANGES if change.is_overridden for place in change.sources}
    elsewhere |= {place for place in PLACES if ".worker.gpu." in place}
    elsewhere |= set() if has_few_cores() else {place for place in PLACES if "SpinCondition" in place}
    assert {place for place, (_, is_ours) in marked.items() if not is_ours} == elsewhere


def test_an_entry_missing_or_double_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"has 0 entries in serve/engine/patches\.py"):
        change_at("vllm.nowhere:Nothing.at_all")


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
