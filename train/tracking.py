"""`recipe.report_to`: settings, losses and scores of a run, recorded by MLflow, TensorBoard, Trackio or W&B.

Everything stays in the state folder (`var/tracking`), unless the tracker's own environment variables say otherwise
(`MLFLOW_TRACKING_URI`, `WANDB_MODE`, `TRACKIO_SPACE_ID`). Settings and figures are recorded, never rows of data.
"""

import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.store.manifest import BaseManifest, ManifestDraft
from config.dataset import DatasetManifest
from config.domain import DomainConfig
from config.private import make_private_folder
from config.training import Tracker
from train.errors import TrackingError
from train.runs import write_run_name

PACKAGES: Mapping[Tracker, tuple[str, str]] = {
    "mlflow": ("mlflow", "pip install 'lorikeet[mlflow]'"),
    "tensorboard": ("tensorboard", "pip install 'lorikeet[tensorboard]'"),
    "trackio": ("trackio", "pip install trackio"),
    "wandb": ("wandb", "pip install wandb"),
}
"""Module and installation of each tracker."""
_LOGGED = ("loss", "grad_norm", "learning_rate")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker gets to know of a run before it begins."""

    domain: str
    name: str
    settings: Mapping[str, str | int | float]


class RunTracker(Protocol):
    """One run in one tracker."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, status: str, scores: Mapping[str, float], version: str | None) -> None:
        """Args: status: FINISHED, FAILED or KILLED."""


class MlflowTracker:
    """A run in MLflow; the domain is the experiment. A resumed run goes on in the run of its name."""

    def __init__(self, run: TrackedRun, folder: Path, environment: Mapping[str, str]) -> None:
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        local = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=environment.get("MLFLOW_TRACKING_URI", local))
        found = self._client.get_experiment_by_name(run.domain)
        experiment_id = found.experiment_id if found else self._client.create_experiment(run.domain)
        runs = self._client.search_runs([experiment_id], f"attributes.run_name = '{run.name}'", max_results=1)
        started = runs[0] if runs else self._client.create_run(experiment_id, run_name=run.name)
        self._run_id = started.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        for key, value in run.settings.items():
            self._client.log_param(self._run_id, key, value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._client.log_metric(self._run_id, key, value, step=step)

    def finish(self, status: str, scores: Mapping[str, float], version: str | None) -> None:
        for key, value in scores.items():
            self._client.log_metric(self._run_id, key, value)
        if version is not None:
            self._client.set_tag(self._run_id, "version", version)
        self._client.set_terminated(self._run_id, status=status)


class TensorboardTracker:
    """A run as a folder of event files; settings and version are its texts."""

    def __init__(self, run: TrackedRun, folder: Path, environment: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard" / run.domain / run.name))
        rows = "\n".join(f"| {key} | {value} |" for key, value in run.settings.items())
        self._text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, status: str, scores: Mapping[str, float], version: str | None) -> None:
        self.log(0, {f"scores/{key}": value for key, value in scores.items()})
        self._text("status", status if version is None else f"{status}: {version}")
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text)


class WandbTracker:
    """A run in W&B, offline by default, or in Trackio, which has the same functions."""

    def __init__(self, module: Any, run: TrackedRun, **settings: Any) -> None:
        self._module = module
        module.init(project="lorikeet", name=run.name, config=dict(run.settings), resume="allow", **settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=step)

    def finish(self, status: str, scores: Mapping[str, float], version: str | None) -> None:
        self._module.log({f"scores/{key}": value for key, value in scores.items()} | {"version": version or status})
        self._module.finish()


class Tracking:
    """All trackers of a run. One that fails is told of and left out: a run does not end for its record."""

    def __init__(self, run_name: str, trackers: Mapping[str, RunTracker]) -> None:
        self.run_name = run_name
        self._trackers = dict(trackers)
        self._scores: dict[str, float] = {}
        self._version: str | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.log(step, finite))

    def published(self, name: str, record: ManifestDraft) -> None:
        """The version, or where else the result went, and its final scores, recorded at the end."""
        self._version = name
        self._scores = final_scores(record)

    def finish(self, status: str) -> None:
        self._each(lambda tracker: tracker.finish(status, self._scores, self._version))

    def _each(self, act: Callable[[RunTracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                logger.warning("%s records no more of this run: %s", name, error)


class TrackSteps(TrainerCallback):
    """Passes loss, gradient norm, rate and held-out figures to the trackers."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write_run_name(Path(str(args.output_dir)), self._tracking.run_name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._log(state, {key: value for key, value in (logs or {}).items() if key in _LOGGED})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._log(state, {key: value for key, value in (metrics or {}).items() if key.startswith("eval_")})

    def _log(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        if metrics and state.is_world_process_zero:
            self._tracking.log(state.global_step, metrics)


@contextmanager
def tracked(
    config: DomainConfig,
    base: BaseManifest,
    dataset: DatasetManifest,
    name: str,
    folder: Path,
    environment: MutableMapping[str, str] = os.environ,
) -> Iterator[Tracking]:
    """Record a run until the block ends, with the way in which it ended.

    Raises:
        TrackingError: A tracker cannot be started.
    """
    run = TrackedRun(config.name, name, settings_of(config, base, dataset))
    tracking = Tracking(name, start_trackers(config.recipe.report_to, run, folder, environment))
    try:
        yield tracking
    except Exception:
        tracking.finish("FAILED")
        raise
    except BaseException:
        tracking.finish("KILLED")
        raise
    tracking.finish("FINISHED")


def untracked() -> AbstractContextManager[Tracking]:
    """For processes whose figures another one records."""
    return nullcontext(Tracking("", {}))


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises:
    TrackingError: A package is missing.
    """
    for name in names:
        module, install = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise TrackingError(
                f"`recipe.report_to: [{name}]` requires the package {module!r}, which is missing: {install}"
            )


def start_trackers(
    names: Sequence[Tracker], run: TrackedRun, folder: Path, environment: MutableMapping[str, str]
) -> dict[str, RunTracker]:
    if names:
        make_private_folder(folder)
    check_trackers(names)
    started: dict[str, RunTracker] = {}
    for name in names:
        try:
            started[name] = _start(name, run, folder, environment)
        except Exception as error:
            raise TrackingError(
                f"{name} of `recipe.report_to` does not start: {error}. Check its settings, or leave it out."
            ) from error
    return started


def run_name(domain: str, now: datetime) -> str:
    return f"{domain}-{now:%Y%m%d-%H%M%S}"


def settings_of(config: DomainConfig, base: BaseManifest, dataset: DatasetManifest) -> dict[str, str | int | float]:
    """Settings with dotted names, and the digests of what the run reads."""
    return dict(_flat(config.training_arguments)) | {
        "domain": config.name,
        "base": base.name,
        "base_digest": base.digest,
        "dataset_sha256": dataset.dataset_sha256,
    }


def final_scores(record: ManifestDraft) -> dict[str, float]:
    """Figures of the version's evaluation, with dotted names."""
    parts = {"evaluation": record.evaluation, "forgetting": record.forgetting}
    dumped = {name: part.model_dump(mode="json") for name, part in parts.items() if part is not None}
    dumped["scores"] = {name: score.model_dump(mode="json") for name, score in record.scores.items()}
    return {key: float(value) for key, value in _flat(dumped) if isinstance(value, int | float)}


def _start(name: Tracker, run: TrackedRun, folder: Path, environment: MutableMapping[str, str]) -> RunTracker:
    # Read when the packages are imported. MLflow counts its use at its makers' otherwise.
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    environment.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    if name == "mlflow":
        return MlflowTracker(run, folder, environment)
    if name == "tensorboard":
        return TensorboardTracker(run, folder, environment)
    module = importlib.import_module(name)
    if name == "trackio":
        return WandbTracker(module, run)
    mode = environment.get("WANDB_MODE", "offline")
    return WandbTracker(module, run, id=run.name, dir=str(folder), mode=mode)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | list | tuple):
            yield prefix + key, str(value)
        elif value is not None:
            yield prefix + key, value
