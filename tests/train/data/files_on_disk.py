"""Helpers of the tests of reading: files with given bytes or rows, and examples in short words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.data import DataConfig
from config.dataset import Message
from train.data.examples import Example
from train.data.reading import FileExamples, read_files

SAMPLES = Path(__file__).parent / "samples"


def rows(*values: Any) -> bytes:
    """JSON Lines."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(*paths: Path | str, refusal: str | None = None, **settings: Any) -> FileExamples:
    names = tuple(map(str, paths))
    return read_files(names, DataConfig.model_validate({"path": names, **settings}), refusal)


def pairs(read: FileExamples) -> list[tuple[str, str]]:
    """Last question and last answer of each example."""
    return [(example.question, example.answer) for example in read.examples]


def spoken(turns: Sequence[Message]) -> str:
    """Turns as `u: Hello | a: Hi!`; `*` marks a turn that is not learnt."""
    said = []
    for turn in turns:
        calls = "".join(f"{call.function.name}{json.dumps(call.function.arguments)}" for call in turn.tool_calls)
        said.append(f"{turn.role[0]}{'' if turn.weight else '*'}: {turn.content}{calls}")
    return " | ".join(said)


def told(example: Example) -> str:
    """One example in one line."""
    if example.type == "preference":
        return f"{spoken(example.prompt)} > {spoken(example.chosen)} > {spoken(example.rejected)}"
    label = "" if example.label is None else f" {example.label}"
    return example.text or f"{spoken(example.prompt)} > {spoken(example.completion)}{label}"
