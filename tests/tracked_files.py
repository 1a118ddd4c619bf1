"""The files that git knows, for the tests of the house."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked_files() -> list[Path]:
    """Relative paths of all tracked files that still exist; skips the test where this is no git checkout."""
    finished = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(name) for name in finished.stdout.split("\0") if name and (ROOT / name).exists()]
