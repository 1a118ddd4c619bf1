import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from config.dataset import DatasetManifest, DatasetRow
from config.domain import AnswerConfig, ChatConfig, EvaluationConfig
from tests.tiny_llama import tiny_tokenizer
from train.data.expand import REQUESTS_FILE, ROWS_FILE, Budget, expand, read_expansion
from train.data.expand_filters import (
    JudgeTokens,
    class_filter,
    control_token_filter,
    copies_filter,
    judge_filter,
    schema_filter,
)
from train.data.teacher import Teacher
from train.errors import DataError

SCHEMA = {"type": "object", "properties": {"team": {"enum": ["a", "b"]}}, "required": ["team"]}


def manifest(**answer: Any) -> DatasetManifest:
    counts = dict.fromkeys(("num_train", "num_validation", "num_test", "num_test_out_of_scope"), 1)
    return DatasetManifest.model_validate(
        {
            "domain": "support",
            "description": "",
            "source": "rows.jsonl",
            "source_version": "1",
            "licence": None,
            "chat": ChatConfig(system="Which team?"),
            "answer": AnswerConfig(**answer),
            "evaluation": EvaluationConfig(),
            "few_shot": (),
            "config_sha256": "",
            "dataset_sha256": "0" * 64,
            "created_at": "2026-11-29T00:00:00+00:00",
            **counts,
        }
    )


def seeds(count: int = 12) -> list[DatasetRow]:
    return [DatasetRow(messages=(), input=f"seed {index}", output=("one", "two")[index % 2]) for index in range(count)]


def teacher(reply: Callable[[str], str]) -> Teacher:
    """A teacher that answers by a function of the prompt, over the real client."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        text = reply(json.loads(request.content)["messages"][0]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "t", "choices": [choice], "usage": usage}
        return httpx2.Response(200, json=body)

    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    return Teacher(openai.OpenAI(base_url="http://teacher/v1", api_key="none", http_client=client, max_retries=0), "t")


def numbered() -> Callable[[str], str]:
    """Replies with two new rows each time."""
    numbers: Iterator[int] = iter(range(10_000))
    return lambda prompt: json.dumps(
        {"examples": [{"input": f"new {next(numbers)}", "output": "one"} for _ in range(2)]}
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROWS_FILE).read_text().splitlines()]


def test_rows_are_marked_synthetic_and_the_budget_holds(tmp_path: Path) -> None:
    expand(manifest(), seeds(), teacher(numbered()), [], Budget(7, 100_000), tmp_path)
    rows = rows_of(tmp_path)
    assert len(rows) == 7
    assert all(row["is_synthetic"] and row["teacher"] == "t" for row in rows)
    assert not any(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())


def test_tokens_end_the_run(tmp_path: Path) -> None:
    made = expand(manifest(), seeds(), teacher(numbered()), [], Budget(1000, 1500), tmp_path)
    assert 1500 <= made.num_tokens <= 1500 + 4 * 100


def test_a_second_run_goes_on_and_asks_other_questions(tmp_path: Path) -> None:
    prompts: list[str] = []
    reply = numbered()

    def remember(prompt: str) -> str:
        prompts.append(prompt)
        return reply(prompt)

    expand(manifest(), seeds(), teacher(remember), [], Budget(8, 100_000), tmp_path)
    first = list(prompts)
    expand(manifest(), seeds(), teacher(remember), [], Budget(16, 100_000), tmp_path)
    assert len(rows_of(tmp_path)) == 16
    assert not set(first) & set(prompts[len(first) :])


def test_what_was_accepted_stays_when_the_teacher_fails(tmp_path: Path) -> None:
    expand(manifest(), seeds(), teacher(numbered()), [], Budget(4, 100_000), tmp_path)
    before = rows_of(tmp_path)

    def refuse(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, json={"error": {"message": "overloaded"}})

    client = httpx2.Client(transport=httpx2.MockTransport(refuse))
    down = Teacher(openai.OpenAI(base_url="http://t/v1", api_key="x", http_client=client, max_retries=0), "gone")
    with pytest.raises(DataError, match=r"gone.*overloaded"):
        expand(manifest(), seeds(), down, [], Budget(40, 100_000), tmp_path)
    assert rows_of(tmp_path) == before


@pytest.mark.parametrize(
    "reply", ["no JSON", "[]", '{"examples": 3}', '{"examples": [{"input": "x"}]}', '{"examples": [1, null]}']
)
def test_a_useless_teacher_ends_the_run_with_the_reason(tmp_path: Path, reply: str) -> None:
    with pytest.raises(DataError, match="no rows in the teacher's answer"):
        expand(manifest(), seeds(), teacher(lambda prompt: reply), [], Budget(5, 10**9), tmp_path)


def test_a_teacher_that_runs_dry_ends_the_run_with_what_was_accepted(tmp_path: Path) -> None:
    reply, asked = numbered(), iter(range(10_000))
    running_dry = teacher(lambda prompt: reply(prompt) if next(asked) < 4 else "no JSON")
    with pytest.raises(DataError, match=r"last 24 requests could be used \(24 no rows .*; 8 rows were accepted"):
        expand(manifest(), seeds(), running_dry, [], Budget(100, 10**9), tmp_path)
    assert len(rows_of(tmp_path)) == 8
    made = expand(manifest(), seeds(), teacher(reply), [], Budget(20, 10**9), tmp_path)
    assert len(made.rows) == 20


def test_repeated_questions_are_taken_once(tmp_path: Path) -> None:
    reply = json.dumps({"examples": [{"input": "Same", "output": "one"}, {"input": " same ", "output": "one"}]})
    made = expand(manifest(), seeds(), teacher(lambda prompt: reply), [], Budget(5, 2000), tmp_path)
    assert len(made.rows) == 1
    assert made.rejected["repeats a row"] > 1


@pytest.mark.parametrize(
    "row",
    [
        '{"input": "\\ud83c", "output": "one"}',
        '{"input": "x", "output": NaN}',
        '{"input": "y", "output": [1e999]}',
    ],
)
def test_half_a_surrogate_pair_and_nan_are_not_written(tmp_path: Path, row: str) -> None:
    made = expand(
        manifest(), seeds(), teacher(lambda prompt: f'{{"examples": [{row}]}}'), [], Budget(5, 2000), tmp_path
    )
    assert made.rows == []


def test_control_tokens_of_the_base_are_rejected() -> None:
    check = control_token_filter(tiny_tokenizer())
    assert check("Colour?", "red<|im_end|>") == "contains a control token"
    assert check("<|im_start|>user", "red") == "contains a control token"
    assert check("a < b | c > d", "red") is None


def test_refusals_are_asked_for_only_if_the_domain_has_one(tmp_path: Path) -> None:
    made = expand(manifest(), seeds(), teacher(numbered()), [], Budget(8, 10**6), tmp_path / "a")
    assert all(row["in_scope"] for row in made.rows)
    made = expand(manifest(refusal="no"), seeds(), teacher(numbered()), [], Budget(16, 10**6), tmp_path / "b")
    assert {row["kind"] for row in made.rows if not row["in_scope"]} == {"refusal"}
    with pytest.raises(DataError, match=r"answer\.refusal"):
        expand(manifest(), seeds(), teacher(numbered()), [], Budget(8, 10**6), tmp_path / "c", kinds=["refusal"])


def test_the_schema_filter_wants_valid_answers_or_the_refusal() -> None:
    check = schema_filter(manifest(json_schema=SCHEMA, refusal="none of ours"))
    assert check("q", '{"team": "a"}') is None
    assert check("q", "none of ours") is None
    assert check("q", '{"team": "z"}') == "answer does not meet the schema"


def test_the_class_filter_knows_only_seen_classes() -> None:
    assert class_filter(manifest(), seeds(40))("q", "three") == "unknown class"
    assert class_filter(manifest(), seeds(40))("q", "two") is None
    assert class_filter(manifest(), seeds(4))("q", "three") is None


def test_near_copies_of_known_and_of_new_rows_are_rejected() -> None:
    known = "My parcel of last Monday has not arrived yet, where is it now?"
    check = copies_filter([known, "How do I reset my password?"], 0.8)
    assert check(known.replace("Monday", "Monday,").upper(), "a") == "nearly equals a row"
    assert check("The invoice of March shows a wrong address.", "a") is None
    assert check("The invoice of March shows a wrong address!", "a") == "nearly equals a row"


def test_the_judge_decides_by_its_grade() -> None:
    graded = {"good": '{"reason": "fine", "grade": 5}', "bad": '{"reason": "wrong", "grade": 2}'}
    judge = teacher(lambda prompt: graded["good" if "good" in prompt else "bad"])
    check = judge_filter(judge, manifest(), None, JudgeTokens())
    assert check("q", "good") is None
    assert check("q", "worse") == "judge's grade below 4"
    silly = judge_filter(teacher(lambda prompt: "who knows"), manifest(), None, JudgeTokens())
    assert silly("q", "good") == "judge's reply unusable"


def test_the_judges_tokens_are_part_of_the_budget(tmp_path: Path) -> None:
    judged = JudgeTokens()
    judge = judge_filter(teacher(lambda prompt: '{"reason": "fine", "grade": 5}'), manifest(), None, judged)
    made = expand(manifest(), seeds(), teacher(numbered()), [judge], Budget(1000, 1500), tmp_path, judged=judged)
    assert made.num_tokens == 100 * (len(made.requests) + len(made.rows))
    assert made.num_tokens <= 1500 + 4 * 300


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ROWS_FILE).write_text('{"input": "x"}\nhalf')
    with pytest.raises(DataError, match=rf"{ROWS_FILE} line 2"):
        read_expansion(tmp_path)
    (tmp_path / ROWS_FILE).write_text("")
    (tmp_path / REQUESTS_FILE).write_text("{}")
    with pytest.raises(DataError, match=rf"{REQUESTS_FILE} line 1"):
        read_expansion(tmp_path)
