"""A part of the rows, trained by the command itself."""

from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.dataset import read_dataset, read_split
from config.home import Home
from loadtest.errors import TargetError
from loadtest.evaluation.decide.curve import part_of, train_part
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.data.build import build_dataset

pytestmark = pytest.mark.slow


def test_a_part_is_trained_on_its_rows_and_asked_the_same(tmp_path: Path) -> None:
    whole, own = Home(tmp_path / "var"), Home(tmp_path / "part")
    for home in (whole, own):
        prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
        home.runs.mkdir()
    config = tiny_domain(write_colour_data(tmp_path / "colours.jsonl"), max_steps=4)
    dataset = build_dataset(config, whole)
    part = part_of(config, dataset.num_train, dataset.num_train // 2)
    train_part(part, own)
    manifest = AdapterStore(own.adapters).manifest(Target("colours", 1))
    assert manifest.dataset is not None
    assert manifest.dataset.num_train == dataset.num_train // 2
    assert manifest.training is not None
    assert manifest.training.metrics["steps"] == 2
    assert "exact_match" in {figure.key for figure in manifest.figures}
    asked, evaluated = (read_split(home.datasets / "colours", "test") for home in (whole, own))
    assert asked == evaluated
    rows = {row.input for row in read_split(whole.datasets / "colours", "train")}
    assert {row.input for row in read_split(own.datasets / "colours", "train")} < rows
    assert read_dataset(own.datasets / "colours").num_test == dataset.num_test


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    home.runs.mkdir(parents=True)
    config = tiny_domain(write_colour_data(tmp_path / "colours.jsonl"), max_steps=4)
    with pytest.raises(TargetError, match=r"training on \d+ rows failed\.\n(.|\n)*lorikeet base prepare"):
        train_part(config, home)
