"""The pages that promise something name tests that exist."""

import re

import pytest

from tests.tracked_files import ROOT

PAGES = ("reliability.md", "security.md", "tenants.md")
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
NAMED = re.compile(r"`(?:tests/)?((?:[a-z0-9_]+/)*test_[a-z0-9_]+\.py)(?:::(test_[a-z0-9_]+)(…)?)?`")


def exists(path, name, is_cut):
    file = next((found for found in TEST_FILES if str(found).endswith(f"/{path}")), None)
    if file is None:
        return False
    return not name or re.search(rf"def {name}{'' if is_cut else chr(92) + 'b'}", file.read_text()) is not None


@pytest.mark.parametrize("page", PAGES)
def test_each_test_that_a_page_names_exists(page):
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert named
    assert [f"{path}::{name}" for path, name, is_cut in named if not exists(path, name, is_cut)] == []
