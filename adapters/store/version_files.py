"""The files of a version folder and their size limits."""

from pathlib import Path

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.peft_folder import CONFIG_FILE, DORA_FILE, WEIGHTS_FILE

README_FILE = "README.md"
PLOT_FILE = "evaluation.svg"
HELD_OUT_FILE = "held_out.json"  # `quality.held_out` reads it; here it is bytes with a bound
EVALUATION_FILE = "evaluation.jsonl"  # likewise `quality.evaluated`

MAX_BYTES = {
    CONFIG_FILE: 1 << 20,
    WEIGHTS_FILE: 64 << 30,  # rank 512 on every layer of a 70B base is a quarter of this
    DORA_FILE: 1 << 30,  # two numbers an output: 30 MB for every layer of a 70B base
    FINGERPRINT_FILE: 64 << 20,
    README_FILE: 4 << 20,
    PLOT_FILE: 4 << 20,
    HELD_OUT_FILE: 64 << 20,  # 10,000 questions of 500 tokens are about 40 MB
    EVALUATION_FILE: 64 << 20,  # training writes at most half of it
}
"""Size limit in bytes of each file that is copied into a version; no other file is copied."""

PRIVATE_FILES = frozenset({FINGERPRINT_FILE, HELD_OUT_FILE, EVALUATION_FILE})
"""Files with examples of the data: readable only by the owner."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_HISTORY_BYTES = 64 << 20


def mode_of(name: str) -> int:
    """Permissions of a version's file."""
    return 0o400 if name in PRIVATE_FILES else 0o444


def find_oversized(folder: Path) -> list[tuple[str, int, int]]:
    """(name, size in bytes, largest allowed) of every file that is too large."""
    paths = [(folder / name, largest) for name, largest in MAX_BYTES.items()]
    return [
        (path.name, path.stat().st_size, largest)
        for path, largest in paths
        if path.is_file() and path.stat().st_size > largest
    ]
