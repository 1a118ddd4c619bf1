"""What identifies a base, a data set and a version is the same whatever the process around it is set to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import surroundings

ENGLAND = {"TZ": "Europe/London", "PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8"}
NEW_ZEALAND = {"TZ": "Pacific/Auckland", "PYTHONHASHSEED": "2", "LC_ALL": "POSIX"}
NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Text files are ASCII where the code names no encoding, as they are Latin-1 in other locales."""


def start(folder: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", surroundings.__name__, str(folder)]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_digests_do_not_depend_on_zone_locale_or_hash_seed(tmp_path: Path) -> None:
    started = [
        start(tmp_path / "england", ENGLAND),
        start(tmp_path / "new-zealand", NEW_ZEALAND | NO_UTF8),
    ]
    england, new_zealand = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in started)
    assert england == new_zealand
    assert {"base", "dataset", "fingerprint.json", "adapter_config.json", "adapter_model.safetensors"} <= set(england)
