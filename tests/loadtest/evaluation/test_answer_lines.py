"""Answers as lines of a file."""

from pathlib import Path

from loadtest.evaluation.answer_lines import AnswerLines, read_lines


def test_a_line_that_was_cut_short_is_left_out_and_ended(tmp_path: Path) -> None:
    lines = AnswerLines(tmp_path, "medical@3", "digest")
    lines.append({"id": 1})
    lines.path.write_bytes(lines.path.read_bytes() + b'{"id": 2')
    AnswerLines(tmp_path, "medical@3", "digest").append({"id": 3})
    assert list(read_lines(lines.path, lambda fields: fields["id"])) == [1, 3]


def test_a_file_is_private_and_its_name_is_a_plain_one(tmp_path: Path) -> None:
    path = AnswerLines(tmp_path, "org/model of ours", "digest", "-8").path
    assert path.parent == tmp_path
    assert path.name.startswith("org_model_of_ours-")
    assert path.name.endswith("-8.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
