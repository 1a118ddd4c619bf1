"""Which version the demo serves: an earlier one, one that goes on from a checkpoint, or a new one."""

from pathlib import Path
from typing import Any

import pytest

from adapters.bases import read_base
from adapters.store.manifest import DatasetRef, RequestDefaults, TrainingRecord
from adapters.store.store import AdapterStore
from config.data import DataConfig
from config.dataset import DATASET_MANIFEST_FILE, read_dataset
from config.domain import AnswerConfig, ChatConfig, DomainConfig, EvaluationConfig
from config.home import Home
from config.model import Config
from config.training import RecipeConfig
from demo.training import current_version, replaced_versions, start_over, train_words
from tests.datasets_on_disk import write_dataset
from tests.peft_folders import draft_for, write_base_folder, write_peft_folder
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
    key = run_key(domain(), read_base(home.bases / "tiny"), read_dataset(home.datasets / "medical"))
    start_run(home.runs / "medical", key)
    for step, file in ((9, "trainer_state.json"), (30, "trainer_state.json"), (60, "adapter_model.safetensors")):
        folder = home.runs / "medical" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / file).touch()
    return home


def test_an_interrupted_run_is_resumed(home: Home) -> None:
    assert train_words(home, domain(), FILE) == ["train", str(FILE), "--resume"]


def test_a_torn_checkpoint_does_not_count(home: Home) -> None:
    found = last_checkpoint(home.runs / "medical")
    assert found is not None
    assert found.name == "checkpoint-30"


def test_another_recipe_is_trained_from_the_start(home: Home) -> None:
    assert train_words(home, domain(max_steps=7), FILE) == ["train", str(FILE)]


def test_starting_over_forgets_an_unfinished_run(home: Home, tmp_path: Path) -> None:
    start_over(home, ["medical"], tmp_path / "fresh.json")
    assert train_words(home, domain(), FILE) == ["train", str(FILE)]


def test_without_a_run_there_is_nothing_to_resume(home: Home, tmp_path: Path) -> None:
    (home.runs / "medical").rename(tmp_path / "gone")
    assert train_words(home, domain(), FILE) == ["train", str(FILE)]


def publish(home: Home, **changes: Any) -> None:
    """A stable version of `domain()`, but for the changed fields of its manifest."""
    folder, store = write_peft_folder(home.root / "made"), AdapterStore(home.adapters)
    base, dataset = read_base(home.bases / "tiny"), read_dataset(home.datasets / "medical")
    sizes = dataset.model_dump(include={"num_train", "num_validation", "num_test", "licence", "dataset_sha256"})
    arguments = domain().training_arguments
    fields: dict[str, Any] = {
        "base": base.ref,
        "dataset": DatasetRef(source="test", **sizes),
        "training": TrainingRecord(arguments=arguments, metrics={}, duration_s=1, device="cpu", libraries={}),
        "answer_schema": dataset.answer.json_schema,
        "defaults": RequestDefaults.model_validate(dataset.version_defaults),
    }
    version = store.publish(folder, draft_for(folder, **fields | changes)).version
    store.promote("medical", version)


def test_a_version_of_the_same_configuration_is_current(home: Home) -> None:
    publish(home)
    found = current_version(home, domain())
    assert found is not None
    assert found.lora_name == "medical@1"


def test_after_starting_over_only_a_newer_version_is_current(home: Home, tmp_path: Path) -> None:
    marker = tmp_path / "demo" / "fresh.json"
    assert replaced_versions(marker) == {}
    publish(home)
    start_over(home, ["medical", "legal"], marker)
    replaced = replaced_versions(marker)
    assert replaced == {"medical": 1, "legal": 0}
    assert current_version(home, domain(), replaced["medical"]) is None
    publish(home)
    found = current_version(home, domain(), replaced["medical"])
    assert found is not None
    assert found.lora_name == "medical@2"


def test_a_version_without_defaults_is_not_current(home: Home) -> None:
    publish(home, defaults=None)
    assert current_version(home, domain()) is None


@pytest.mark.parametrize(
    "changed",
    [{"evaluation": EvaluationConfig(max_new_tokens=48, stop=("}",))}, {"answer": AnswerConfig(json_schema={})}],
)
def test_a_version_of_another_evaluation_is_not_current(home: Home, changed: dict[str, Config]) -> None:
    publish(home)
    file = home.datasets / "medical" / DATASET_MANIFEST_FILE
    file.write_text(read_dataset(file.parent).model_copy(update=changed).model_dump_json())
    assert current_version(home, domain()) is None


def test_a_version_older_than_a_setting_has_its_default(home: Home) -> None:
    arguments = {k: v for k, v in domain().training_arguments.items() if k not in ("template_date", "method")}
    training = TrainingRecord(arguments=arguments, metrics={}, duration_s=1, device="cpu", libraries={})
    publish(home, training=training)
    assert current_version(home, domain()) is not None
    assert current_version(home, domain(max_steps=7)) is None
