"""What the requests of each way hold."""

from pathlib import Path

import pytest

from config.dataset import DatasetManifest, DatasetRow, Message, read_dataset, read_split
from loadtest.evaluation.decide.ways import PromptParts, Way, fixed_examples, ways
from tests.datasets_on_disk import ANSWER, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[DatasetManifest, list[DatasetRow]]:
    folder = write_dataset(tmp_path / "medical", num_test=4)
    return read_dataset(folder), read_split(folder, "test")


def contents(turns: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in turns]


def test_the_base_alone_comes_first() -> None:
    found = ways(("examples", "nearest", "documents"), has_adapter=True, can_constrain=True)
    assert found[0] == Way(False, "none", False)
    assert len(found) == 14
    assert not any(way.is_adapter and way.context == "examples" for way in found)


def test_without_schema_adapter_and_examples_only_the_base_is_left() -> None:
    assert ways((), has_adapter=False, can_constrain=False) == [Way(False, "none", False)]


def test_the_nearest_example_is_beside_the_question(dataset: tuple[DatasetManifest, list[DatasetRow]]) -> None:
    manifest, rows = dataset
    parts = PromptParts(manifest, rows, nearest=[[rows[3], rows[2]]])
    requests = parts.requests(Way(False, "nearest", False), 0, "tiny", ())
    assert contents(requests[0]["messages"]) == ["Chapter, as JSON.", "term 2", ANSWER, "term 3", ANSWER, "term 0"]
    assert [len(request["messages"]) for request in requests] == [6, 4, 2]
    assert contents(requests[1]["messages"])[1] == "term 3"


def test_fixed_examples_are_those_of_the_data_set(dataset: tuple[DatasetManifest, list[DatasetRow]]) -> None:
    manifest, rows = dataset
    parts = PromptParts(manifest, rows, fixed_examples(manifest, rows, 3))
    (request, *_) = parts.requests(Way(False, "examples", False), 0, "tiny", ())
    assert contents(request["messages"])[1::2] == ["example 0", "example 1", "term 0", "term 0"]


def test_passages_stand_before_the_question(dataset: tuple[DatasetManifest, list[DatasetRow]]) -> None:
    manifest, rows = dataset
    parts = PromptParts(manifest, rows, passages=[["Skin is outside.", "Bones are inside."]])
    requests = parts.requests(Way(True, "documents", False), 0, "medical@3", ("system",))
    assert contents(requests[0]["messages"]) == ["Skin is outside.\n\nBones are inside.\n\nterm 0"]
    assert [len(request["messages"][0]["content"]) for request in requests] == [43, 24, 6]


def test_a_constrained_request_has_the_schema(dataset: tuple[DatasetManifest, list[DatasetRow]]) -> None:
    manifest, rows = dataset
    parts = PromptParts(manifest, rows)
    (free,), (constrained,) = (parts.requests(Way(False, "none", limit), 0, "tiny", ()) for limit in (False, True))
    assert constrained.pop("response_format")["json_schema"]["schema"] == manifest.answer.json_schema
    assert constrained == free


def test_rows_with_several_turns_are_whole_examples(dataset: tuple[DatasetManifest, list[DatasetRow]]) -> None:
    manifest, rows = dataset
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    long = rows[0].model_copy(update={"messages": tuple(Message(role=r, content=c) for r, c in turns)})
    (request, *_) = PromptParts(manifest, rows, nearest=[[long]]).requests(Way(False, "nearest", False), 0, "tiny", ())
    assert contents(request["messages"]) == ["Chapter, as JSON.", "a", "b", "c", "d", "term 0"]
