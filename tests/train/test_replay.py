import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import PreTrainedModel

from config.dataset import DatasetRow, read_split
from config.domain import DomainConfig
from config.home import Home
from config.load import domain_of
from tests.tiny_llama import (
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset, config_sha256
from train.data.general import GENERAL_REQUESTS
from train.errors import DataError
from train.objectives.objective import Task
from train.objectives.sft import Sft
from train.replay import REPLAY_FILE, whole_sentences, with_replay

pytestmark = pytest.mark.slow


def never(folder: Path) -> PreTrainedModel:
    raise AssertionError(f"{folder} was loaded")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Task:
    root = tmp_path_factory.mktemp("replay")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model", initializer_range=0.2))
    domain = tiny_domain(write_colour_data(root / "c.jsonl"), replay_share=0.25, max_length=192)
    rows = {"train": read_rows(domain, home)}
    dataset = build_dataset(domain, home)
    return Task(domain, dataset, rows, tiny_tokenizer(), RENDERED_AT, root, home.bases / "tiny")  # type: ignore[arg-type]


def read_rows(domain: DomainConfig, home: Home) -> list[DatasetRow]:
    build_dataset(domain, home)
    return read_split(home.datasets / domain.name, "train")


@pytest.fixture(scope="module")
def answered(plain: Task, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """With rows that the base has answered, in its folder."""
    return with_replay(replace(plain, run_folder=tmp_path_factory.mktemp("answered")), load_causal_lm)


@pytest.fixture
def task(plain: Task, tmp_path: Path) -> Task:
    return replace(plain, run_folder=tmp_path)


def with_file(task: Task, path: Path, *lines: Mapping[str, object]) -> Task:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = task.config.data.model_copy(update={"replay": (str(path),)})
    return replace(task, config=task.config.model_copy(update={"data": data}))


def test_the_base_answers_general_requests_itself(answered: Task) -> None:
    rows = answered.replay
    assert len(rows) == 10  # a quarter of 40, beside 30
    assert {row.input for row in rows} <= set(GENERAL_REQUESTS)
    assert [[turn.role for turn in row.messages] for row in rows] == [["user", "assistant"]] * 10
    assert all(row.output and row.is_synthetic for row in rows)


def test_a_resumed_run_has_the_same_rows(answered: Task) -> None:
    assert with_replay(replace(answered, replay=()), never).replay == answered.replay
    assert (answered.run_folder / REPLAY_FILE).is_file()


def test_rows_of_a_file_are_taken_without_the_domains_system_prompt(task: Task, tmp_path: Path) -> None:
    given = with_file(task, tmp_path / "general.jsonl", *({"input": f"q{n}", "output": f"a{n}"} for n in range(3)))
    rows = with_replay(given, never).replay
    assert sorted(Counter(row.input for row in rows).values()) == [3, 3, 4]
    assert {row.messages[0].role for row in rows} == {"user"}
    assert {row.output for row in rows} == {"a0", "a1", "a2"}


def test_a_file_without_answers_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"replay.*no questions with answers"):
        with_replay(with_file(task, tmp_path / "general.jsonl", {"text": "prose"}), never)


def test_general_rows_follow_the_domains_and_long_ones_are_left_out(task: Task, tmp_path: Path) -> None:
    lines = ({"input": "q", "output": "a"}, {"input": "long", "output": "a" * 500})
    given = with_replay(with_file(task, tmp_path / "general.jsonl", *lines), never)
    held_out = list(given.rows["train"][:4])
    given = replace(given, rows={"train": given.rows["train"], "validation": held_out, "test": held_out})
    data = Sft().encode(given)
    assert data.num_replay == 5
    assert len(data.train) == len(given.rows["train"]) + 5
    assert "q" in given.tokenizer.decode(data.train[-1]["input_ids"])
    assert len(data.validation) == 4


def test_without_a_share_nothing_is_mixed_in(task: Task) -> None:
    recipe = task.config.recipe.model_copy(update={"replay_share": 0.0})
    assert with_replay(replace(task, config=task.config.model_copy(update={"recipe": recipe})), never).replay == ()


def test_too_short_rows_for_an_answer_are_refused(task: Task) -> None:
    recipe = task.config.recipe.model_copy(update={"max_length": 64})
    with pytest.raises(DataError, match="max_length` 64"):
        with_replay(replace(task, config=task.config.model_copy(update={"recipe": recipe})), never)


def test_replay_asks_for_no_other_data_set(task: Task, tmp_path: Path) -> None:
    home, given = Home(tmp_path / "var"), with_file(task, tmp_path / "general.jsonl", {"input": "q", "output": "a"})
    assert config_sha256(given.config, home) == config_sha256(task.config, home)


def test_a_share_needs_answers_and_a_file_needs_a_share(tmp_path: Path) -> None:
    values = tiny_domain(write_colour_data(tmp_path / "c.jsonl")).model_dump(mode="json", exclude_unset=True)
    for changed, match in (
        ({"recipe": {"replay_share": 0.1}, "objective": "text"}, "replay_share"),
        ({"data": values["data"] | {"replay": ["general.jsonl"]}}, "replay_share"),
    ):
        with pytest.raises(ValidationError, match=match):
            DomainConfig.model_validate(values | changed)


def test_files_are_found_from_the_domains_file(tmp_path: Path) -> None:
    values = tiny_domain(write_colour_data(tmp_path / "c.jsonl"), replay_share=0.1)
    fields = values.model_dump(mode="json", exclude_unset=True)
    fields["data"]["replay"] = ["general.jsonl"]
    assert domain_of(fields, tmp_path / "d.yaml").data.replay == (str(tmp_path / "general.jsonl"),)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("One. Two! And th", "One. Two!"), ("no end", "no end"), (" 3.5 is it? Yes", "3.5 is it?"), ("", "")],
)
def test_answers_end_with_a_whole_sentence(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
