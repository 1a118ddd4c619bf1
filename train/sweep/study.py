"""A study: trials of one domain, kept in SQLite, so that an interrupted sweep goes on."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import optuna
from optuna.trial import TrialState

from adapters.store.manifest import BaseManifest
from config.dataset import DatasetManifest
from config.domain import DomainConfig
from config.private import make_private_folder
from config.sweep import SweepConfig
from train.errors import ResumeError
from train.sweep.space import space_of

STUDY_FILE = "study.sqlite3"
_KEY = "key"
NUM_STARTUP_TRIALS = 5
"""Drawn at random, and never pruned."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
logger = logging.getLogger(__name__)


def open_study(config: DomainConfig, folder: Path, key: str, *, restart: bool = False) -> optuna.Study:
    """The study in this folder, or a new one; trials that were interrupted are queued again.

    Raises:
        ResumeError: The study there is of another base, data set, recipe or space.
    """
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        make_private_folder(folder)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY_FILE).absolute()}",
        study_name=config.name,
        direction="minimize" if config.recipe.metric_for_best_model == "eval_loss" else "maximize",
        load_if_exists=True,
    )
    if study.user_attrs.get(_KEY, key) != key:
        raise ResumeError(
            f"The sweep of {config.name!r} in {folder} has another base, data set, recipe or space. "
            "Restore those, or begin anew with `--restart`, which deletes its trials."
        )
    study.set_user_attr(_KEY, key)
    num_begun = len(study.get_trials(deepcopy=False))
    # A seed of its own for each call: the same one would draw the same trials again.
    study.sampler = optuna.samplers.TPESampler(seed=config.recipe.seed + num_begun, n_startup_trials=NUM_STARTUP_TRIALS)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_STARTUP_TRIALS)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def study_key(config: DomainConfig, base: BaseManifest, dataset: DatasetManifest) -> str:
    """Identity of a study: its trials can be compared with each other."""
    varied = {
        "settings": config.training_arguments,
        "space": SweepConfig(space=space_of(config)).model_dump(mode="json")["space"],
    }
    text = f"{base.digest}\n{dataset.dataset_sha256}\n{json.dumps(varied, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ended with a value, or were pruned for theirs."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
