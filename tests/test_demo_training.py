"""Which version the demo serves: an earlier one, one that goes on from a checkpoint, or a new one."""

from pathlib import Path

import pytest

from adapters.base import read_base
from config.dataset import read_dataset
from config.home import Home
from config.schema import ChatConfig, DataConfig, DomainConfig, RecipeConfig
from demo.training import train_words
from tests.datasets_on_disk import write_dataset
from tests.peft_folders import write_base_folder
from train.runs import last_checkpoint, run_key, start_run

FILE = Path("config/domains/medical.yaml")


def domain(**recipe: int) -> DomainConfig:
    data = DataConfig.model_validate({"source": "jsonl", "path": "none.jsonl", "num_train": 4, "num_test": 4})
    return DomainConfig(
        name="medical", description="", base="tiny", data=data, chat=ChatConfig(system="?"),
        recipe=RecipeConfig.model_validate(recipe),
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with an interrupted run of `domain()`, which has one whole checkpoint and a torn one."""
    home = Home(tmp_path)
    write_base_folder(home.bases / "tiny")
    write_dataset(home.datasets / "medical", num_test=4)
    key = run_key(domain().recipe, read_base(home.bases / "tiny"), read_dataset(home.datasets / "medical"))
    start_run(home.runs / "medical", key)
    for step, file in ((9, "trainer_state.json"), (30, "trainer_state.json"), (60, "adapter_model.safetensors")):
        folder = home.runs / "medical" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / file).touch()
    return home


def test_an_interrupted_run_is_resumed(home: Home) -> None:
    assert train_words(home, domain(), FILE, is_fresh=False) == ["train", str(FILE), "--resume"]


def test_a_torn_checkpoint_does_not_count(home: Home) -> None:
    found = last_checkpoint(home.runs / "medical")
    assert found is not None
    assert found.name == "checkpoint-30"


def test_another_recipe_is_trained_from_the_start(home: Home) -> None:
    assert train_words(home, domain(max_steps=7), FILE, is_fresh=False) == ["train", str(FILE)]


def test_fresh_trains_from_the_start(home: Home) -> None:
    assert train_words(home, domain(), FILE, is_fresh=True) == ["train", str(FILE)]


def test_without_a_run_there_is_nothing_to_resume(home: Home, tmp_path: Path) -> None:
    (home.runs / "medical").rename(tmp_path / "gone")
    assert train_words(home, domain(), FILE, is_fresh=False) == ["train", str(FILE)]
