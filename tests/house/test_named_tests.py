"""The pages that promise something name tests that exist."""

import re

import pytest

from tests.tracked_files import ROOT

PAGES = ("reliability.md", "security.md", "tenants.md")
NAMED = re.compile(r"`(?:tests/)?((?:[a-z0-9_]+/)*test_[a-z0-9_]+\.py)(?:::(test_[a-z0-9_]+)(…)?)?`")


def named_tests():
    for page in PAGES:
        for path, name, is_cut in NAMED.findall((ROOT / "docs" / page).read_text()):
            yield pytest.param(path, name, bool(is_cut), id=f"{page} {path} {name}")


@pytest.mark.parametrize(("path", "name", "is_cut"), list(named_tests()))
def test_each_test_that_a_page_names_exists(path, name, is_cut):
    files = [found for found in (ROOT / "tests").rglob(path.rpartition("/")[2]) if str(found).endswith(f"/{path}")]
    assert files, f"no test file {path}"
    assert not name or re.search(rf"def {name}{'' if is_cut else chr(92) + 'b'}", files[0].read_text())
