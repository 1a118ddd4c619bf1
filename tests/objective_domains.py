"""Small data files of each type, and domains that train on them with the tiny Llama."""

import json
from pathlib import Path
from typing import Any

from config.domain import DomainConfig
from tests.tiny_llama import NO_PROBES, tiny_domain

COLOURS = ("red", "green", "blue")
_NUM_ROWS = 42
_CHECK_NOTHING = {"exact_duplicates": "keep", "contamination": "keep", "contradictions": "keep", "pii": "off"}


def preference(number: int) -> dict[str, Any]:
    colour, other = COLOURS[number % 3], COLOURS[(number + 1) % 3]
    return {"prompt": f"item {number} is {colour}", "chosen": colour, "rejected": f"not {other}!"}


def unpaired(number: int) -> dict[str, Any]:
    pair = preference(number)
    is_good = number % 2 == 0
    return {"prompt": pair["prompt"], "completion": pair["chosen" if is_good else "rejected"], "label": is_good}


def text(number: int) -> dict[str, Any]:
    return {
        "text": f"Note {number}. " + f"The {COLOURS[number % 3]} item stands on shelf {number}. " * (1 + number % 3)
    }


def prompt_completion(number: int) -> dict[str, Any]:
    return {"input": f"item {number} is {COLOURS[number % 3]}", "output": COLOURS[number % 3]}


ROWS = {
    "dpo": preference,
    "orpo": preference,
    "reward": preference,
    "kto": unpaired,
    "text": text,
    "sft": prompt_completion,
}


def objective_domain(folder: Path, objective: dict[str, Any], *, name: str = "colours", **fields: Any) -> DomainConfig:
    path = folder / f"{name}.jsonl"
    make = ROWS[objective["name"]]
    path.write_text("\n".join(json.dumps(make(number)) for number in range(_NUM_ROWS)) + "\n")
    whole = tiny_domain(path, learning_rate=0.01).model_dump(mode="json", by_alias=True)
    whole["data"]["cleaning"] |= _CHECK_NOTHING
    whole["evaluation"] |= NO_PROBES
    return DomainConfig.model_validate(whole | {"name": name, "objective": objective} | fields)
