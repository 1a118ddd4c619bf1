import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_LARGE = 512 << 20
_CHILD = "from train.bench_memory import peak_bytes; print(peak_bytes())"
_PARENT = f"""
import json, subprocess, sys
from train.bench_memory import peak_bytes
memory = b"x" * {_LARGE}
del memory
child = subprocess.run([sys.executable, "-c", {_CHILD!r}], check=True, capture_output=True, text=True)
print(json.dumps([peak_bytes(), int(child.stdout)]))
"""


def test_a_peak_stays_and_is_not_inherited() -> None:
    ran = subprocess.run([sys.executable, "-c", _PARENT], check=True, capture_output=True, text=True)
    parent, child = json.loads(ran.stdout)
    assert parent > _LARGE > 2 * child
