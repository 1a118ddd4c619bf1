"""One side of `lorikeet bench data`: builds a data set of synthetic rows, and prints the seconds of each step as JSON.

`python -m train.bench_data SIDE FOLDER NUM_ROWS`: `rows` writes FOLDER/rows.jsonl, `lorikeet` builds a data set of it,
`datasets` reads, deduplicates, splits and writes it with Hugging Face's library alone.
"""

import json
import random
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from config.domain import DomainConfig
from config.home import Home
from train.bench_memory import peak_bytes, peak_bytes_of_children
from train.data.build import StepLog, build_dataset

ROWS_FILE = "rows.jsonl"
NUM_HELD_OUT = 304
_NUM_WORDS = 150  # about 200 tokens
_VOCABULARY = 20_000
_SYLLABLES = ("ba", "cor", "den", "fi", "gul", "ha", "ist", "jo", "kem", "lu", "mar", "ne", "op", "qui", "ras", "ton")
_COPIES = 50
"""One row of so many is a copy of an earlier one, one a near copy."""


def write_rows(path: Path, num_rows: int, seed: int = 13) -> None:
    """Questions of 150 made-up words in Zipf's frequencies, with an answer of four words; the same for all sides."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(_VOCABULARY)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(_VOCABULARY)))
    earlier: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            chosen = rng.choices(words, cum_weights=weights, k=_NUM_WORDS)
            row = {"input": " ".join(chosen), "output": " ".join(chosen[:4])}
            if number % _COPIES == _COPIES - 1:
                row = earlier[-1]
            elif number % _COPIES == _COPIES - 2:
                row = {"input": f"{earlier[-1]['input']} indeed", "output": earlier[-1]["output"]}
            earlier = [row]
            file.write(json.dumps(row) + "\n")


def build_ours(rows: Path, home: Home, num_rows: int) -> dict[str, float]:
    """Seconds of each step, with near duplicates dropped."""
    config = DomainConfig.model_validate(
        {
            "name": "bench",
            "description": "Synthetic.",
            "data": {
                "path": str(rows),
                "num_train": num_rows,
                "num_test": 240,
                "num_validation": 64,
                "cleaning": {"near_duplicates": "drop"},
            },
            "chat": {"system": "Say the first four words."},
        }
    )
    log = StepLog()
    build_dataset(config, home, log=log)
    return log.seconds


def build_theirs(rows: Path, folder: Path) -> dict[str, float]:
    """Seconds of what `datasets` has of it: reading, exact duplicates, a random split, writing."""
    import datasets

    datasets.disable_progress_bars()
    timer = Timer()
    table = datasets.Dataset.from_json(str(rows), cache_dir=str(folder / "cache"))
    timer.stop("read")
    seen: set[tuple[str, str]] = set()
    table = table.filter(lambda row: is_new(seen, row), keep_in_memory=True)
    timer.stop("exact duplicates")
    parts = table.train_test_split(test_size=NUM_HELD_OUT, seed=13)
    timer.stop("split")
    for name, part in parts.items():
        part.to_json(folder / f"{name}.jsonl")
    timer.stop("write")
    return timer.seconds


class Timer:
    """Seconds between stops."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start_s = time.perf_counter()

    def stop(self, name: str) -> None:
        now_s = time.perf_counter()
        self.seconds[name], self._start_s = now_s - self._start_s, now_s


def is_new(seen: set[tuple[str, str]], row: dict[str, Any]) -> bool:
    key = row["input"], row["output"]
    if key in seen:
        return False
    seen.add(key)
    return True


def main() -> None:
    side, folder, num_rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    rows = folder / ROWS_FILE
    if side == "rows":
        write_rows(rows, num_rows)
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        start = time.perf_counter()
        seconds = build_ours(rows, Home(Path(name)), num_rows) if side == "lorikeet" else build_theirs(rows, Path(name))
        figures = {
            "total_s": time.perf_counter() - start,
            "seconds": seconds,
            "peak_bytes": peak_bytes() + peak_bytes_of_children(),
        }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
