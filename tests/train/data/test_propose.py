import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from config.data import DataConfig
from config.dataset import FunctionCall, Message, ToolCall
from config.load import load_domain
from tests.tiny_llama import write_tiny_llama
from train.data.examples import Example
from train.data.propose import classes_of, data_settings, propose, schema_of, write_domain
from train.data.sources import question_answer
from train.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")
    )
    return tokenizer


def questions(count: int, answer: Any = "yes") -> list[Example]:
    return [question_answer(f"question number {index}", str(answer)) for index in range(count)]


def written(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> Path:
    path = tmp_path / "support.yaml"
    write_domain("support", "tiny", {"path": "rows.jsonl"}, propose(examples, tokenizer), path)
    return path


@pytest.mark.slow
def test_what_is_written_loads_and_fits_the_data(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = load_domain(written(tmp_path, tokenizer, questions(200)))
    assert config.data.paths == (str(tmp_path / "rows.jsonl"),)
    held_out = (config.data.num_validation or 0) + (config.data.num_test or 0)
    assert config.data.num_train + held_out == 200
    assert config.recipe.max_steps * config.recipe.per_device_train_batch_size >= 2 * config.data.num_train
    assert [file.name for file in tmp_path.iterdir()] == ["support.yaml"]


@pytest.mark.slow
def test_every_setting_of_the_recipe_has_its_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    lines = written(tmp_path, tokenizer, questions(200)).read_text().splitlines()
    for key in ("max_length", "max_steps", "metric", "max_new_tokens", "num_test", "system"):
        line = next(line for line in lines if line.strip().startswith(f"{key}:"))
        assert "  # " in line


def test_repeated_answers_become_classes_in_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    proposal = propose(questions(30, "red") + questions(60, "green")[30:], tokenizer)
    assert set(proposal.classes) == {"red", "green"}
    assert "red" in proposal.system


def test_answers_that_differ_are_no_classes() -> None:
    assert classes_of([f"answer {index % 30}" for index in range(100)]) == ()


def test_json_answers_get_a_schema_that_all_of_them_meet() -> None:
    answers = [json.dumps({"team": ("a", "b")[index % 2], "hours": index, "note": f"n{index}"}) for index in range(20)]
    schema = schema_of(answers)
    assert schema is not None
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
    assert schema["properties"]["team"] == {"enum": ["a", "b"]}
    assert schema["properties"]["note"] == {"type": "string"}
    assert not jsonschema.Draft202012Validator(schema).is_valid({"team": "c", "hours": 1, "note": ""})


@pytest.mark.parametrize(
    "answers", [["1", "2"], ["[1]", "no JSON"], ["true"], ['{"a": NaN}'], ['{"a": 1, "a": 2}'], []]
)
def test_answers_that_are_not_all_objects_get_no_schema(answers: list[str]) -> None:
    assert schema_of(answers) is None


def test_the_rows_own_system_prompt_is_taken(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = (Message(role="system", content="You sell kettles."), Message(role="user", content="?"))
    own = [
        Example(
            "prompt_completion",
            prompt=(turns[0], Message(role="user", content=f"q {index}")),
            completion=(Message(role="assistant", content="a"),),
        )
        for index in range(20)
    ]
    assert propose(own, tokenizer).system == "You sell kettles."


@pytest.mark.parametrize("text", ["a: b\nc # d", "line\u2028separator", "[brackets]", "'quotes\"", "- x"])
def test_any_system_prompt_survives_the_yaml(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    rows = [
        Example(
            "prompt_completion",
            prompt=(Message(role="system", content=text), Message(role="user", content=f"q {index}")),
            completion=(Message(role="assistant", content="a"),),
        )
        for index in range(20)
    ]
    path = written(tmp_path, tokenizer, rows)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["chat"]["system"] == text


@pytest.mark.parametrize("name", ["support", "2026", "1e5", "null", "true", "on"])
def test_any_name_survives_the_yaml(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    write_domain(name, "tiny", {"path": "rows.jsonl"}, propose(questions(20), tokenizer), path)
    assert load_domain(path).name == name


def test_too_few_rows_and_other_types_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="9 different questions"):
        propose(questions(9), tokenizer)
    with pytest.raises(DataError, match=r"prompt_only examples.*`objective: grpo`"):
        propose([Example("prompt_only", prompt=(Message(role="user", content="x"),))] * 20, tokenizer)


def pair(number: int) -> Example:
    prompt = (Message(role="user", content=f"question {number}"),)
    chosen, rejected = (Message(role="assistant", content=text) for text in ("yes", "certainly not"))
    return Example("preference", prompt=prompt, chosen=(chosen,), rejected=(rejected,))


def judged(number: int) -> Example:
    return replace(pair(number), type="unpaired_preference", chosen=(), rejected=(), completion=pair(number).chosen,
                   label=number % 2 == 0)  # fmt: skip


def document(number: int) -> Example:
    return Example("language_modeling", text=f"Document {number} about roses.")


@pytest.mark.parametrize(("make", "objective"), [(pair, "dpo"), (judged, "kto"), (document, "text")])
def test_the_objective_follows_the_type_of_the_data(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make: Callable[[int], Example], objective: str
) -> None:
    for num_rows in (10, 40):
        config = load_domain(written(tmp_path, tokenizer, [make(number) for number in range(num_rows)]))
        assert config.objective.name == objective


def test_texts_have_no_answers_to_choose_from(tokenizer: PreTrainedTokenizerBase) -> None:
    proposal = propose([document(number) for number in range(40)], tokenizer)
    assert (proposal.classes, proposal.json_schema, proposal.system) == ((), None, "Answer the question.")


def test_rows_that_the_base_cannot_be_trained_on_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    call = ToolCall(function=FunctionCall(name="look_up", arguments={}))
    answer = (Message(role="assistant", tool_calls=(call,)),)
    calling = [replace(example, completion=answer) for example in questions(20)]
    with pytest.raises(DataError, match=r"cannot be trained \(20\): .*chat template leaves out or changes 'look_up'"):
        propose(calling, tokenizer)


def test_paths_are_relative_to_the_yaml_and_urls_stay(tmp_path: Path) -> None:
    config = DataConfig(path=(str(tmp_path / "a.csv"), "s3://bucket/b.csv"), layout="alpaca")
    settings = data_settings(config, tmp_path / "config" / "domains")
    assert settings == {"path": ["../../a.csv", "s3://bucket/b.csv"], "layout": "alpaca"}
