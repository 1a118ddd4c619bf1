"""`lorikeet sweep`: one training a trial, judged on the validation split; nothing is published."""

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.store.manifest import BaseManifest, ComputeRecord
from adapters.store.store import AdapterStore
from config.dataset import DatasetManifest
from config.domain import DomainConfig
from config.errors import ConfigError
from config.home import Home
from config.load import domain_of, read_mapping
from config.progress import Progress, shown
from config.rows import read_rows
from train.data.build import build_dataset
from train.data.rows import check_type
from train.errors import DivergenceError, RecipeError, TrainError
from train.methods.table import check_method, method_of
from train.objectives.arguments import check_arguments
from train.objectives.objective import TRAINED_SPLITS
from train.objectives.table import objective_of
from train.pipeline import checked_base, named_versions
from train.sweep.page import write_page
from train.sweep.space import as_plain, each_value, suggest, with_values
from train.sweep.study import NUM_STARTUP_TRIALS, finished, open_study, study_key
from train.training import train_adapter

_COMPUTE = "compute"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """A sweep's trials, and the files that it wrote."""

    study: optuna.Study
    best_values: Mapping[str, Any]
    recipe: Path
    page: Path


class PruneTrial(TrainerCallback):
    """Reports each evaluation to the study, and ends a trial that is worse than the median of others at its step."""

    def __init__(self, trial: optuna.Trial, metric: str, progress: Progress) -> None:
        self._trial, self._metric, self._progress = trial, metric, progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.details["step"] = f"{state.global_step} of {state.max_steps}"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._trial.report((metrics or {})[self._metric], state.global_step)
        if self._trial.should_prune():
            raise optuna.TrialPruned


@dataclass
class Sweep:
    """What all trials share; what the first measured to compute in is kept for the others."""

    path: Path
    values: Mapping[str, Any]
    config: DomainConfig
    base: BaseManifest
    dataset: DatasetManifest
    home: Home
    progress: Progress

    @property
    def folder(self) -> Path:
        return self.home.sweeps / self.config.name

    @property
    def metric(self) -> str:
        return f"eval_{self.config.recipe.metric_for_best_model.removeprefix('eval_')}"

    def try_once(self, trial: optuna.Trial) -> float:
        """Train one trial; its value is what the kept weights reach on the validation split.

        Raises:
            TrialPruned: It was worse than others, or diverged.
            TrainingMemoryError: It does not fit into memory.
        """
        suggested = suggest(trial, self.config)
        config = domain_of(with_values(self.values, suggested), self.path)
        check_arguments(config.recipe)
        run_folder = self.folder / f"trial-{trial.number}"
        try:
            return self._train(trial, config, run_folder)
        except DivergenceError as error:
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        finally:
            shutil.rmtree(run_folder, ignore_errors=True)

    def _train(self, trial: optuna.Trial, config: DomainConfig, run_folder: Path) -> float:
        kept = trial.study.user_attrs.get(_COMPUTE)
        data = self.home.datasets / config.name
        trained = train_adapter(
            config,
            self.base,
            self.home.bases / config.base,
            self.dataset,
            {split: list(read_rows(data, split)) for split in TRAINED_SPLITS},
            run_folder,
            versions=named_versions(config, AdapterStore(self.home.adapters), self.base),
            compute=ComputeRecord.model_validate(kept) if kept else None,
            callbacks=(PruneTrial(trial, self.metric, self.progress),),
        )
        if trained.record.compute is not None:
            trial.study.set_user_attr(_COMPUTE, trained.record.compute.model_dump(mode="json"))
        return trained.record.metrics[self.metric]


def sweep_domain(
    path: Path,
    home: Home,
    *,
    trials: int | None = None,
    timeout_s: float | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> Swept:
    """Search until so many trials are finished in all, or the time is over; write page and recipe of the best.

    Raises:
        ConfigError: A value of the space is invalid.
        TrainError: The space or the data cannot be used, or no trial ended with a value.
    """
    values = read_mapping(path)
    config = domain_of(values, path)
    candidates = [config, *(domain_of(with_values(values, candidate), path) for candidate in each_value(config))]
    for candidate in candidates:
        _check(candidate)
    base = checked_base(config, home)
    for candidate in candidates:
        method_of(candidate.method).check_base(candidate.method, base)
        named_versions(candidate, AdapterStore(home.adapters), base)
    dataset = build_dataset(config, home)
    for candidate in candidates:
        check_type(dataset, candidate.objective)
    progress = Progress(f"sweep {config.name}", unit="trials")
    sweep = Sweep(path, values, config, base, dataset, home, progress)
    study = open_study(config, sweep.folder, study_key(config, base, dataset), restart=restart)
    with shown(progress, console) if console is not None else nullcontext():
        _run(sweep, study, config.sweep.trials if trials is None else trials, timeout_s)
    return _write(sweep, study)


def _check(config: DomainConfig) -> None:
    objective_of(config)
    check_method(config)
    check_arguments(config.recipe)


def _run(sweep: Sweep, study: optuna.Study, num_trials: int, timeout_s: float | None) -> None:
    started = time.monotonic()
    sweep.progress.begin(num_trials, len(finished(study)))
    num_failed = 0
    while len(finished(study)) < num_trials and (timeout_s is None or time.monotonic() - started < timeout_s):
        trial = study.ask()
        try:
            value = sweep.try_once(trial)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except (TrainError, ConfigError) as error:  # of settings that are right alone, and wrong together
            study.tell(trial, state=TrialState.FAIL)
            num_failed += 1
            if num_failed == NUM_STARTUP_TRIALS and not finished(study):
                raise
            logger.warning("trial %d failed: %s", trial.number, error)
        else:
            study.tell(trial, value)
            logger.info("trial %d: %s %.4f with %s", trial.number, sweep.metric, value, trial.params)
            sweep.progress.details["best"] = f"{study.best_value:.4f}"
        sweep.progress.done = len(finished(study))


def _write(sweep: Sweep, study: optuna.Study) -> Swept:
    try:
        best = study.best_trial
    except ValueError:
        raise RecipeError(
            f"No trial of {sweep.config.name!r} ended with a value. Allow more trials or time, and run the same again."
        ) from None
    values = suggest(optuna.trial.FixedTrial(best.params), sweep.config)
    recipe = sweep.path.with_name(f"{sweep.path.stem}.best.yaml")
    head = (
        f"# Trial {best.number} of {len(finished(study))}: {sweep.metric} {study.best_value:.4f} on the validation "
        f"split.\n# Written by `lorikeet sweep` from {sweep.path.name}; train it with `lorikeet train`.\n"
    )
    text = yaml.safe_dump(as_plain(with_values(sweep.values, values)), sort_keys=False, allow_unicode=True, width=110)
    temporary = recipe.with_name(f"{recipe.name}.tmp")
    temporary.write_text(head + text, encoding="utf-8")
    temporary.replace(recipe)
    return Swept(study, values, recipe, write_page(study, sweep.metric, sweep.folder))
