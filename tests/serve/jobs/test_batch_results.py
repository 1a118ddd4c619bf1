"""Results of a batch on disk: OpenAI's rows, and what a killed server leaves."""

import json
from pathlib import Path

import pytest

from serve.jobs.batch_results import BatchResults, LineAnswer

USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def answer(custom_id: str, status_code: int = 200) -> LineAnswer:
    return LineAnswer(custom_id, status_code, "req", {"usage": USAGE, "text": "Grüße"})


@pytest.fixture
def results(tmp_path: Path) -> BatchResults:
    return BatchResults(tmp_path / "results", "batch_1")


def reopened(tmp_path: Path) -> BatchResults:
    again = BatchResults(tmp_path / "results", "batch_1")
    again.resume()
    return again


def test_rows_are_as_openai_writes_them(results: BatchResults) -> None:
    results.write([answer("a"), LineAnswer("b", code="batch_expired", message="too late")])
    output, error = (json.loads((results.path(kind) or Path()).read_text()) for kind in ("output", "error"))
    assert output.pop("id").startswith("batch_req_")
    assert output == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req", "body": {"usage": USAGE, "text": "Grüße"}},
        "error": None,
    }
    assert error.pop("id").startswith("batch_req_")
    assert error == {"custom_id": "b", "response": None, "error": {"code": "batch_expired", "message": "too late"}}


def test_counts_and_lines_survive_the_server(results: BatchResults, tmp_path: Path) -> None:
    results.write([answer("a"), answer("b", 400)])
    results.write([answer("c")])
    again = reopened(tmp_path)
    assert again.counts == results.counts
    assert (again.counts.num_completed, again.counts.num_failed) == (2, 1)
    assert (again.counts.input_tokens, again.counts.output_tokens) == (14, 6)
    assert [again.has(name) for name in "abcd"] == [True, True, True, False]


@pytest.mark.parametrize("num_bytes", [1, 40, 100])
def test_half_a_last_line_is_cut_off(results: BatchResults, tmp_path: Path, num_bytes: int) -> None:
    results.write([answer("a"), answer("b")])
    path = results.path("output") or Path()
    path.write_bytes(path.read_bytes()[:-num_bytes])
    again = reopened(tmp_path)
    assert (again.has("a"), again.has("b")) == (True, False)
    again.write([answer("b")])
    assert [json.loads(row)["custom_id"] for row in path.read_text().splitlines()] == ["a", "b"]


def test_a_write_that_fails_leaves_whole_lines(
    results: BatchResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.write([answer("a")])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.write([answer("b")])
    assert not results.has("b")
    assert (results.path("output") or Path()).read_bytes().count(b"\n") == 1


def test_there_is_no_file_of_a_kind_without_lines(results: BatchResults) -> None:
    assert results.path("error") is None
    results.write([answer("a")])
    assert results.path("error") is None
    results.remove()
    assert results.path("output") is None
