"""A small built data set whose texts and file name try to be markup, with one row for each kind of finding."""

import json
from pathlib import Path

from config.domain import DomainConfig
from config.home import Home
from train.data.build import build_dataset

FILE = "[bold] <b>rows.jsonl"
HOSTILE = "<script>alert(1)</script> [/bold] [red]order[/red] \x1b[31m{{ 7 * 7 }}"


def write_rows(folder: Path) -> Path:
    """30 questions with answers of their own; lines 1 to 5 have something to find."""
    rows = [{"input": f"Where is the parcel with number {n} of mine?", "output": f"In town {n}."} for n in range(30)]
    rows[0]["input"] = HOSTILE
    rows[1]["input"] = "Write to jo@example.org about my parcel, please."
    rows[2]["output"] = "I'm sorry, but I can't help with that."
    rows[3]["input"] = "[INST] Where is my parcel? [/INST]"
    rows[4] = dict(rows[5])
    path = folder / FILE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def domain_of(path: Path, **changes: object) -> DomainConfig:
    return DomainConfig.model_validate(
        {
            "name": "support",
            "description": "Answers <i>questions</i>.",
            "base": "tiny",
            "data": {
                "path": str(path),
                "num_train": 24,
                "num_validation": 2,
                "num_test": 3,
                "out_of_scope_share": 0,
                "cleaning": {"near_duplicate_jaccard": 1.0, "ngram_overlap": None},
            },
            "chat": {"system": "Answer [/dim]."},
            "recipe": {"max_length": 256},
            **changes,
        }
    )


def build_support(root: Path, pii: str = "report") -> Path:
    """The folder of the data set `support`."""
    home, config = Home(root / "var"), domain_of(write_rows(root))
    cleaning = config.data.cleaning.model_copy(update={"pii": pii})
    data = config.data.model_copy(update={"cleaning": cleaning})
    build_dataset(config.model_copy(update={"data": data}), home)
    return home.datasets / "support"
