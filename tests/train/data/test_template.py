"""Templates that write the date: what `base prepare` says of them, and at which date training renders them."""

import json
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import trl
from typer.testing import CliRunner

from config.dataset import Split, read_split
from config.home import Home
from config.training import RecipeConfig
from lorikeet import app
from tests.tiny_llama import (
    CHAT_TEMPLATE,
    DATED_TEMPLATE,
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from tests.train.data.test_encode import row
from train.data.build import build_dataset
from train.data.encode import encode
from train.data.template import VARIED_YEARS, row_times, run_time, writes_time
from train.errors import PrepareBaseError
from train.training import Trained, train_adapter

FIRST_DAY, NEXT_DAY = date(2026, 11, 28), date(2026, 11, 29)
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize(
    ("template", "writes"),
    [
        (CHAT_TEMPLATE, False),
        (DATED_TEMPLATE, True),
        ("{% if tools %}{{ strftime_now('%H:%M') }}{% endif %}" + CHAT_TEMPLATE, True),
        ("{{ raise_exception('no') if messages|length > 1 else strftime_now('%Y') }}", True),
        ("{% if strftime_now is defined %}{% set year = strftime_now('%Y') %}{% endif %}" + CHAT_TEMPLATE, False),
    ],
)
def test_a_template_that_writes_the_time_is_found(template: str, writes: bool) -> None:
    assert writes_time(tiny_tokenizer(template)) == writes


@pytest.mark.parametrize(
    ("name", "writes"), [("llama3_2", True), ("gptoss", True), ("llama3_1", False), ("qwen3", False)]
)
def test_templates_of_known_models_are_told_apart(name: str, writes: bool) -> None:
    assert writes_time(tiny_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))) == writes


def test_a_template_that_draws_lots_is_refused() -> None:
    with pytest.raises(PrepareBaseError, match="renders one conversation differently each time"):
        writes_time(tiny_tokenizer(CHAT_TEMPLATE + "{{ range(1000) | random }}"))


def test_base_prepare_says_that_the_template_writes_the_date(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "dated", DATED_TEMPLATE)
    words = ["base", "prepare", str(folder), "--quantization", "none", "--home", str(tmp_path / "var")]
    done = CliRunner().invoke(app, words)
    assert "Its chat template writes the date into prompts: see `recipe.template_date`" in done.output
    manifest = json.loads((tmp_path / "var" / "bases" / "dated" / "manifest.json").read_bytes())
    assert manifest["template_writes_time"] is True


def test_prompt_and_answer_are_rendered_at_one_moment() -> None:
    tokenizer = tiny_tokenizer("{{ strftime_now('%H:%M:%S') }} " + CHAT_TEMPLATE)
    encoded = encode(tokenizer, row("a rose", "red").messages, RENDERED_AT)
    prompt = tokenizer.decode(list(encoded.prompt_ids))
    assert isinstance(prompt, str)
    assert prompt.startswith("12:00:00 ")
    assert tokenizer.decode(list(encoded.answer_ids)) == "red<|im_end|>"


@pytest.mark.parametrize(
    ("setting", "day"), [("today", FIRST_DAY), ("varied", FIRST_DAY), ("2024-07-26", date(2024, 7, 26))]
)
def test_a_run_has_one_date_for_what_is_compared(setting: str, day: date) -> None:
    recipe = RecipeConfig.model_validate({"template_date": setting})
    assert run_time(recipe, FIRST_DAY) == datetime(day.year, day.month, day.day, 12)


def test_all_rows_get_the_date_of_the_run_unless_it_is_varied() -> None:
    fixed, varied = RecipeConfig(), RecipeConfig(template_date="varied")
    assert row_times(fixed, RENDERED_AT, 3, "train") == [RENDERED_AT] * 3
    times = row_times(varied, RENDERED_AT, 300, "train")
    assert times == row_times(varied, RENDERED_AT, 300, "train") != row_times(varied, RENDERED_AT, 300, "validation")
    assert times != row_times(RecipeConfig(template_date="varied", seed=14), RENDERED_AT, 300, "train")
    assert {(at.month) for at in times} == set(range(1, 13))
    assert RENDERED_AT <= min(times) < max(times) <= RENDERED_AT + timedelta(days=365 * VARIED_YEARS)


class Runs:
    """Trainings of a tiny base whose template writes the date."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "var")
        self.base = prepare_tiny_base(self.home, write_tiny_llama(root / "model", DATED_TEMPLATE))
        self.domain = tiny_domain(write_colour_data(root / "colours.jsonl"), max_steps=1, max_length=160)
        self.dataset = build_dataset(self.domain, self.home)

    def train(self, today: date, *, resume: bool = False) -> Trained:
        folder = self.home.datasets / "colours"
        splits: tuple[Split, ...] = ("train", "validation")
        rows = {split: read_split(folder, split) for split in splits}
        bases, run = self.home.bases / "tiny", self.home.runs / "colours"
        domain, dataset = self.domain, self.dataset
        return train_adapter(domain, self.base, bases, dataset, rows, run, resume=resume, today=lambda: today)


@pytest.mark.slow
def test_a_run_that_is_resumed_after_midnight_keeps_its_date(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.train(FIRST_DAY)
    resumed = runs.train(NEXT_DAY, resume=True)
    assert resumed.template_time.date() == FIRST_DAY
    assert resumed.record.template_time == resumed.template_time
    assert runs.train(NEXT_DAY).template_time.date() == NEXT_DAY


@pytest.mark.slow
def test_data_show_renders_the_date_that_training_would(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    file = tmp_path / "colours.yaml"
    domain = runs.domain.model_dump(mode="json")
    file.write_text(json.dumps(domain | {"recipe": domain["recipe"] | {"template_date": "2024-02-29"}}))
    shown = CliRunner().invoke(app, ["data", "show", str(file), "--home", str(runs.home.root)])
    assert "Date: 29 February 2024" in shown.output, shown.output
