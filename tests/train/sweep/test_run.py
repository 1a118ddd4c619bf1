"""A sweep on a tiny model: trials, page, recipe; interrupted, it goes on."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from config.errors import ConfigError
from config.home import Home
from config.load import load_domain
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.errors import ResumeError, TrainError
from train.sweep import run as sweep_run
from train.sweep.run import sweep_domain
from train.training import train_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy", "ignore::optuna.exceptions.ExperimentalWarning"
    ),
]
SPACE: dict[str, Any] = {"recipe.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "method.r": [2, 4]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("sweep")
    prepare_tiny_base(Home(root / "var"), write_tiny_llama(root / "model"))
    return Home(root / "var")


def write_domain(folder: Path, name: str, space: dict[str, Any] = SPACE) -> Path:
    data = write_colour_data(folder / f"{name}.jsonl")
    values = tiny_domain(data).model_dump(mode="json", exclude_unset=True)
    values["name"], values["data"]["path"], values["sweep"] = name, data.name, {"space": space}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_best_trial_becomes_a_recipe_that_can_be_trained(home: Home, tmp_path: Path) -> None:
    path = write_domain(tmp_path, "best")
    swept = sweep_domain(path, home, trials=6)
    trials = swept.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(trials) == 6
    complete = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    assert swept.study.best_value == min(complete)
    best = load_domain(swept.recipe)
    assert swept.recipe == tmp_path / "best.best.yaml"
    assert best.recipe.learning_rate == swept.best_values["recipe.learning_rate"]
    assert best.method.model_dump()["r"] == swept.best_values["method.r"]
    assert best.data.path == load_domain(path).data.path
    page = swept.page.read_text()
    assert page.count("<h2>") == 3
    assert "Not shown" not in page
    assert 'src="http' not in page
    assert not home.adapters.exists()
    assert not list((home.sweeps / "best").glob("trial-*"))
    assert not home.runs.exists()


def test_no_trial_sees_the_test_split(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def train(config: Any, base: Any, folder: Any, dataset: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(sorted(rows))
        return train_adapter(config, base, folder, dataset, rows, *args, **kwargs)

    monkeypatch.setattr(sweep_run, "train_adapter", train)
    sweep_domain(write_domain(tmp_path, "unseen"), home, trials=1)
    assert seen == [["train", "validation"]]


def test_an_interrupted_sweep_goes_on_with_the_same_trial(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_domain(tmp_path, "stopped")
    sweep_domain(path, home, trials=1)

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep_run, "train_adapter", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep_domain(path, home, trials=2)
    study = sweep_domain(path, home, trials=2).study
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[2].params == study.trials[1].params
    assert study.trials[1].params != study.trials[0].params


def test_a_sweep_of_another_space_is_not_continued(home: Home, tmp_path: Path) -> None:
    sweep_domain(write_domain(tmp_path, "changed"), home, trials=1)
    other = write_domain(tmp_path, "changed", SPACE | {"method.r": [8]})
    with pytest.raises(ResumeError, match=r"'changed' .*another base, data set, recipe or space.*--restart"):
        sweep_domain(other, home, trials=1)
    assert len(sweep_domain(other, home, trials=1, restart=True).study.trials) == 1


def test_a_trial_that_diverges_is_pruned_and_the_sweep_goes_on(home: Home, tmp_path: Path) -> None:
    path = write_domain(tmp_path, "wild", {"recipe.learning_rate": [1e-3, 1e38]})
    study = sweep_domain(path, home, trials=5).study
    by_rate = {trial.params["recipe.learning_rate"]: trial for trial in study.trials}
    assert by_rate[1e38].state == TrialState.PRUNED
    assert "diverges" in by_rate[1e38].user_attrs["error"]
    assert study.best_params == {"recipe.learning_rate": 1e-3}


def test_a_time_that_is_over_says_so(home: Home, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="No trial of 'late' ended with a value"):
        sweep_domain(write_domain(tmp_path, "late"), home, timeout_s=0)


def test_a_sweep_by_the_domains_metric_is_maximised(home: Home, tmp_path: Path) -> None:
    path = write_domain(tmp_path, "scored")
    values = yaml.safe_load(path.read_text())
    values["recipe"]["metric_for_best_model"] = "exact_match"
    path.write_text(yaml.safe_dump(values))
    study = sweep_domain(path, home, trials=2).study
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert 0 <= study.best_value <= 1


def test_settings_that_are_wrong_together_fail_their_trial_alone(home: Home, tmp_path: Path) -> None:
    space = {"method.name": ["gralora"], "method.r": [4], "method.gralora_k": [2, 3]}
    path = write_domain(tmp_path, "together", space)
    values = yaml.safe_load(path.read_text())
    values["method"] = {"name": "gralora", "r": 6}
    path.write_text(yaml.safe_dump(values))
    study = sweep_domain(path, home, trials=2).study
    assert {trial.params["method.gralora_k"] for trial in study.trials if trial.state != TrialState.FAIL} == {2}


def test_a_fraction_where_a_whole_number_is_wanted_does_not_end_a_sweep(home: Home, tmp_path: Path) -> None:
    path = write_domain(tmp_path, "fraction", {"method.r": {"low": 2.0, "high": 8.0}})
    for _ in range(2):  # the second call begins with no trial of the first
        with pytest.raises(ConfigError, match=r"`method.r`: got .*valid integer"):
            sweep_domain(path, home, trials=1)
    study = optuna.load_study(study_name="fraction", storage=f"sqlite:///{home.sweeps / 'fraction/study.sqlite3'}")
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}
