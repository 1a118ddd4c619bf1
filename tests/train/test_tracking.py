"""What trackers get to know of a run; MLflow and TensorBoard are the real ones."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.errors import TrackingError
from train.pipeline import train_and_publish
from train.tracking import TrackedRun, Tracking, check_trackers, start_trackers

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # mlflow's own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("tracked")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    return home


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_is_recorded_with_settings_losses_and_scores(home: Home, tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = write_colour_data(tmp_path / "colours.jsonl")
    config = tiny_domain(data, report_to=["mlflow", "tensorboard"])
    version = train_and_publish(config, home).manifest
    client = MlflowClient(tracking_uri=f"sqlite:///{home.tracking / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == "colours"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["version"] == version.lora_name
    assert run.data.params["objective.name"] == "sft"
    assert run.data.params["method.r"] == "4"
    assert run.data.params["base_digest"] == version.base.digest
    assert version.dataset is not None
    assert run.data.params["dataset_sha256"] == version.dataset.dataset_sha256
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert len(client.get_metric_history(run.info.run_id, "eval_loss")) == 3
    assert version.evaluation is not None
    assert run.data.metrics["evaluation.adapter.value"] == version.evaluation.adapter.value
    assert "item 1 is" not in json.dumps(run.data.to_dictionary())

    (folder,) = (home.tracking / "tensorboard" / "colours").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert "scores/evaluation.adapter.value" in events.Tags()["scalars"]
    assert not (home.runs / "colours").exists()


class FakeTracker:
    def __init__(self, *, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        self.calls: list[object] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.is_broken:
            raise ConnectionError("no route to the server")
        self.calls.append((step, dict(metrics)))

    def finish(self, status: str, scores: Mapping[str, float], version: str | None) -> None:
        self.calls.append(status)


def test_a_tracker_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = FakeTracker(is_broken=True), FakeTracker()
    tracking = Tracking("run", {"broken": broken, "whole": whole})
    tracking.log(1, {"loss": 0.5, "grad_norm": float("nan")})
    tracking.finish("FINISHED")
    assert whole.calls == [(1, {"loss": 0.5}), "FINISHED"]
    assert broken.calls == []
    assert "broken records no more of this run: no route to the server" in caplog.text


def test_a_missing_package_is_named_with_its_installation() -> None:
    with pytest.raises(TrackingError, match=r"report_to: \[wandb\]` requires the package 'wandb'.*pip install wandb"):
        check_trackers(("tensorboard", "wandb"))


class FakeWandb(SimpleNamespace):
    """Keeps what it is called with, as wandb and trackio take it."""

    def init(self, **settings: object) -> None:
        if self.is_broken:
            raise ConnectionError("no route to the server")
        self.settings = settings

    def log(self, metrics: dict[str, object], step: int | None = None) -> None:
        self.logged = metrics

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    fake = FakeWandb(__spec__=SimpleNamespace(), is_broken=False)
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    return fake


@pytest.mark.parametrize(("environment", "mode"), [({}, "offline"), ({"WANDB_MODE": "online"}, "online")])
def test_wandb_stays_offline_unless_the_user_says_so(
    fake_wandb: FakeWandb, environment: dict[str, str], mode: str, tmp_path: Path
) -> None:
    run = TrackedRun("medical", "medical-1", {"method.r": 4})
    trackers = start_trackers(("wandb",), run, tmp_path, environment)
    assert fake_wandb.settings["mode"] == mode
    assert fake_wandb.settings["config"] == {"method.r": 4}
    trackers["wandb"].finish("FINISHED", {"exact_match": 0.5}, "medical@1")
    assert fake_wandb.logged == {"scores/exact_match": 0.5, "version": "medical@1"}
    assert fake_wandb.is_finished


def test_a_tracker_that_does_not_start_is_named(fake_wandb: FakeWandb, tmp_path: Path) -> None:
    fake_wandb.is_broken = True
    with pytest.raises(TrackingError, match=r"wandb of `recipe\.report_to` does not start"):
        start_trackers(("wandb",), TrackedRun("medical", "medical-1", {}), tmp_path, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_goes_on_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = TrackedRun("medical", "medical-1", {"method.r": 4})
    for step in (1, 2):
        tracker = start_trackers(("mlflow",), run, tmp_path, {})["mlflow"]
        tracker.log(step, {"loss": 1.0 / step})
        tracker.finish("KILLED" if step == 1 else "FINISHED", {}, None)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medical")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(found.info.run_id, "loss")] == [1.0, 0.5]
