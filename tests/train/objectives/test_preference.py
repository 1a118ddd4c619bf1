import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases import read_base
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.dataset import SPLITS
from config.home import Home
from config.rows import read_rows
from tests.objective_domains import objective_domain
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from train.compute import unmeasured
from train.data.build import build_dataset
from train.errors import DataError, RecipeError
from train.objectives.start import stored_version
from train.pipeline import train_and_publish
from train.training import train_adapter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("preference")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    return home


@pytest.fixture(scope="module")
def started(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A supervised version, to start from."""
    folder = tmp_path_factory.mktemp("started")
    return train_and_publish(objective_domain(folder, {"name": "sft"}, name="first"), home).manifest


@pytest.mark.parametrize(
    ("objective", "scores"),
    [
        ({"name": "dpo"}, ["reward_accuracy", "reward_margin", "preference_accuracy"]),
        ({"name": "orpo"}, ["preference_accuracy"]),
        ({"name": "kto"}, ["label_accuracy"]),
    ],
    ids=["dpo", "orpo", "kto"],
)
def test_a_preference_version_is_published_with_its_scores(
    home: Home, tmp_path: Path, objective: dict[str, str], scores: list[str]
) -> None:
    manifest = train_and_publish(objective_domain(tmp_path, objective, name=objective["name"]), home).manifest
    assert list(manifest.scores) == scores
    assert all(score.adapter.n == 8 for score in manifest.scores.values())
    assert manifest.evaluation is not None
    folder = AdapterStore(home.adapters).folder(Target(manifest.name, manifest.version))
    fingerprint = read_fingerprint(folder)
    assert fingerprint is not None
    assert fingerprint.prompts
    assert fingerprint.adapter_effect_nats > 0
    assert scores[0] in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"name": "kto", "loss_type": "apo_zero_unpaired"},
        *(
            pytest.param({"loss_type": loss}, marks=pytest.mark.exhaustive)
            for loss in ("hinge", "ipo", "sigmoid_norm", "apo_zero", "apo_down")
        ),
    ],
    ids=lambda settings: settings["loss_type"],
)
def test_each_loss_trains_by_sharing_prompts(
    home: Home, tmp_path: Path, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    domain = objective_domain(tmp_path, {"name": "dpo"} | settings, name=str(settings["loss_type"]).replace("_", "-"))
    with caplog.at_level(logging.INFO, "train.objectives.shared_prompts"):
        manifest = train_and_publish(domain, home).manifest
    assert manifest.training is not None
    assert manifest.training.metrics["steps"] == 3
    assert math.isfinite(manifest.training.metrics["train_loss"])
    assert "log-probabilities by shared prompts equal TRL's" in caplog.text
    assert "answer positions" not in caplog.text


@pytest.mark.parametrize(
    "objective", ["dpo", "sft", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("orpo", "kto"))]
)
def test_training_continues_from_a_published_version(
    home: Home, tmp_path: Path, started: Manifest, objective: str
) -> None:
    name = f"{objective}-from"
    domain = objective_domain(tmp_path, {"name": objective}, name=name, **{"from": started.lora_name})
    tiny = domain.model_copy(update={"recipe": domain.recipe.model_copy(update={"learning_rate": 1e-9})})
    manifest = train_and_publish(tiny, home).manifest
    assert manifest.started_from is not None
    assert (manifest.started_from.lora_name, manifest.started_from.digest) == (started.lora_name, started.digest)
    store = AdapterStore(home.adapters)
    weights = [
        load_file(store.folder(Target(one.name, one.version)) / "adapter_model.safetensors")
        for one in (started, manifest)
    ]
    assert weights[0].keys() == weights[1].keys()
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=0.01)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"from": "first@9"}, "no 'first@9'"),
        ({"from": "first@1", "method": {"r": 8, "lora_alpha": 8}}, "r is 8, the version's 4"),
        ({"from": "first@1", "method": {"name": "dora", "r": 4}}, "`method` is 'dora'"),
    ],
    ids=["missing", "rank", "method"],
)
def test_a_version_that_cannot_be_continued_is_refused(
    home: Home, tmp_path: Path, started: Manifest, fields: dict[str, object], reason: str
) -> None:
    domain = objective_domain(tmp_path, {"name": "dpo"}, name="refused", **fields)
    with pytest.raises(Exception, match=reason) as refused:
        train_and_publish(domain, home, allow_unserved=True)
    assert "\n" not in str(refused.value)
    assert not (home.runs / "refused").exists()


def test_a_version_of_another_base_is_refused(home: Home, tmp_path: Path, started: Manifest) -> None:
    torch.manual_seed(1)
    model = write_tiny_llama(tmp_path / "model", "{% for m in messages %}{{ m.content }}{% endfor %}")
    prepare_tiny_base(home, model, "other")
    domain = objective_domain(tmp_path, {"name": "dpo"}, base="other", **{"from": started.lora_name})
    with pytest.raises(RecipeError, match=r"'first@1' was trained on the base 'tiny' .* but `base` is 'other'"):
        train_and_publish(domain, home)


def test_data_of_another_type_names_the_objectives_that_fit(home: Home, tmp_path: Path) -> None:
    domain = objective_domain(tmp_path, {"name": "dpo"}, name="typed")
    wrong = domain.model_copy(update={"objective": objective_domain(tmp_path, {"name": "kto"}, name="k").objective})
    with pytest.raises(DataError, match=r"type 'preference'.*'unpaired_preference'.*`dpo`, `orpo`, `reward`"):
        train_and_publish(wrong, home)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_an_interrupted_run_from_a_version_resumes_its_adapter(
    home: Home, tmp_path: Path, started: Manifest, objective: str
) -> None:
    """transformers alone would load the reference, and train on from the version's own weights."""
    domain = objective_domain(tmp_path, {"name": objective}, name=f"{objective}-stopped", **{"from": started.lora_name})
    store, base = AdapterStore(home.adapters), read_base(home.bases / "tiny")
    dataset = build_dataset(domain, home)
    rows = {split: list(read_rows(home.datasets / domain.name, split)) for split in SPLITS}
    versions = {started.lora_name: stored_version(store, started.lora_name, base)}

    def train(*, resume: bool) -> dict[str, torch.Tensor]:
        folder, run = home.bases / "tiny", home.runs / domain.name
        trained = train_adapter(
            domain, base, folder, dataset, rows, run, versions=versions, resume=resume, compute=unmeasured()
        )
        return {name: p.detach().clone() for name, p in trained.model.named_parameters() if ".default." in name}

    whole = train(resume=False)
    (home.runs / domain.name / "checkpoint-3").rename(tmp_path / "lost")
    torch.testing.assert_close(train(resume=True), whole, atol=1e-5, rtol=0.01)
