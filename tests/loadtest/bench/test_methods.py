import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.reference import Target
from config.home import Home
from loadtest.bench.methods import CELLS, bench_methods, table_of
from loadtest.bench.options import BenchOptions
from loadtest.bench.served_cells import parity_of
from loadtest.bench.trainers import BASE
from loadtest.errors import TargetError

CELL: dict[str, Any] = {
    "seconds": 31.2, "peak_bytes": 1.5e9, "trainable_parameters": 4_880.0,
    "exact_match": {"value": 0.4, "ci_low": 0.309, "ci_high": 0.498, "n": 100}, "forgotten_nats": 0.0213,
    "scores": {"reward": {"base": {"value": 0.25}, "adapter": {"value": 0.5}}}, "served_as": "LoRA",
    "conversion_nats": 0.0435, "tokens_per_s": 211.4, "parity_nats": 0.0123,
}  # fmt: skip


def test_a_cell_is_a_row_and_a_refused_one_says_why() -> None:
    table = table_of({"lora": CELL, "bottleneck": {"error": "there is no engine for it"}}).splitlines()
    assert table[2] == (
        "| lora | 4,880 | 31 | 1,500 | 0.400 (0.309 to 0.498) | +0.021 | reward 0.250 to 0.500 "
        "| LoRA | 0.0435 | 0.0123 | 211 |"
    )
    assert "there is no engine for it" in table[3]
    assert {line.count("|") for line in table} == {12}


def test_a_cell_that_went_on_from_another_says_so() -> None:
    table = table_of({"dpo": CELL | {"started_from": "lora@1"}}).splitlines()
    assert table[2].startswith("| dpo, from lora@1 | 4,880 |")


def test_cells_are_named_apart() -> None:
    assert len({cell["name"] for cell in CELLS}) == len(CELLS)


def test_without_a_base_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="lorikeet base prepare"):
        bench_methods(BenchOptions(Home(tmp_path)))


def test_kept_cells_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bases" / BASE).mkdir(parents=True)
    kept = {cell["name"]: CELL for cell in CELLS}
    place = tmp_path / "bench-methods"
    place.mkdir()
    (place / "cells.json").write_text(json.dumps(kept))
    said: list[str] = []
    results = bench_methods(BenchOptions(Home(tmp_path), environment=dict(os.environ), say=said.append))
    assert len(results) == len(CELLS)
    assert not any(line.startswith("training") for line in said)
    assert (place / "table.md").read_text().count("\n") == len(CELLS) + 2


def test_parity_is_that_of_the_served_version() -> None:
    rows = [{"adapter": f"lora@{version}", "parity_error_nats": error} for version, error in ((1, None), (2, 0.02))]
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"adapters": rows}))
    with httpx.Client(base_url="http://test", transport=transport) as client:
        assert [parity_of(client, Target("lora", version)) for version in (1, 2, 3)] == [None, 0.02, None]
