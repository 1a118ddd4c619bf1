from pathlib import Path
from typing import Any

from adapters.reference import Target
from adapters.store.store import AdapterStore
from loadtest.bench.served_cells import ServedCell, waiting_cells
from tests.peft_folders import draft_for, write_peft_folder

BASES = {"lora": "nf4", "qlora": "stored", "full": "nf4", "bottleneck": "nf4", "loftq": "nf4"}
KEPT: dict[str, dict[str, Any]] = {
    "lora": {"served_as": "LoRA", "name": "lora@2"},
    "qlora": {"served_as": "LoRA", "name": "qlora@1"},
    "full": {"served_as": "a base of its own", "name": "full-1"},
    "bottleneck": {"served_as": "not served", "name": "bottleneck/1"},
    "loftq": {"error": "it corrects what quantization changed"},
}


def store_with(root: Path, *names: str) -> AdapterStore:
    store = AdapterStore(root / "adapters")
    folder = write_peft_folder(root / "peft")
    for name in names:
        store.publish(folder, draft_for(folder, name))
    return store


def test_each_base_has_a_server_for_its_newest_versions(tmp_path: Path) -> None:
    store = store_with(tmp_path, "lora", "lora", "qlora")
    assert waiting_cells(store, BASES, KEPT) == {
        "nf4": [ServedCell("lora", Target("lora", 2))],
        "stored": [ServedCell("qlora", Target("qlora", 1))],
        "full-1": [ServedCell("full", None)],
    }


def test_a_cell_that_has_answered_waits_no_more(tmp_path: Path) -> None:
    answered = {name: cell | {"tokens_per_s": None} for name, cell in KEPT.items()}
    assert waiting_cells(store_with(tmp_path, "lora", "qlora"), BASES, answered) == {}
