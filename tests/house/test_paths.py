"""No tracked file knows the machine that it was written on."""

import re

import pytest

from tests.tracked_files import ROOT, tracked_files

# Written in pieces, so that this file does not find itself.
MACHINE = re.compile("|".join(["/" + "work/", "/" + "root/", "/home" + r"/\w+/", "/opt/" + "pypi", "/opt/" + "wheels"]))
INDEX = re.compile(r"(?:index-url|find-links)[= ]+(\S+)|https?://([^/\s\"']*(?:pypi|simple|artifactory)[^/\s\"']*)")


def texts():
    return [(str(path), (ROOT / path).read_text(encoding="utf-8", errors="ignore")) for path in tracked_files()]


def test_no_tracked_file_holds_a_path_of_a_machine():
    assert [(path, match.group()) for path, text in texts() if (match := MACHINE.search(text))] == []


def test_no_tracked_file_names_a_package_index_but_pytorchs():
    found = [(path, match.group()) for path, text in texts() for match in INDEX.finditer(text)]
    allowed = ("download.pytorch.org", "TORCH_CPU_INDEX")
    assert [(path, text) for path, text in found if not any(name in text for name in allowed)] == []


@pytest.mark.parametrize("text", ["/" + "work/main", "/" + "root/.venv", "/home" + "/ada/x"])
def test_the_pattern_knows_a_machine_path(text):
    assert MACHINE.search(text)
