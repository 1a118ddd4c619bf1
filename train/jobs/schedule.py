"""`jobs.schedule`: an adapter is trained again once enough of its answers were corrected, and tried as a canary.

The worker calls `Schedule.step` now and then. What the job trains passes the domain's gates, becomes `NAME@canary`, and
the server's verdict promotes it or rolls it back.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bases import find_base
from adapters.errors import AdapterError
from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import JobsError
from adapters.jobs.files import FileStore
from adapters.jobs.models import ModelNames
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job, StoredFile, new_id
from adapters.release.traffic import CANARY_ALIAS
from adapters.release.trials import current_trial
from adapters.store.durable import file_lock
from adapters.store.store import AdapterStore
from config.errors import ConfigError, DatasetError
from config.home import Home
from config.jobs import ScheduleConfig
from config.load import read_mapping
from quality.errors import QualityError
from quality.robustness.settings import PERTURBATIONS
from quality.samples.store import QualityStore
from train.errors import TrainError

logger = logging.getLogger(__name__)

_METADATA = "lorikeet_schedule"
"""Names the adapter whose schedule has submitted a job."""
_EVERYBODYS = "anonymous"
"""Owner of an adapter that no tenant's job has made; serve/access/ownership.py gives its models to every key."""
_EVERY_S = 60.0
_RECIPE_KEYS = (
    "description", "chat", "answer", "evaluation", "defaults", "gates", "quality", "method", "recipe"
)  # fmt: skip


@dataclass(frozen=True)
class DueTraining:
    """An adapter with enough new corrections.

    Attributes:
        stable: The version that training goes on from, e.g. `medical@3`.
    """

    name: str
    stable: str
    num_corrections: int


@dataclass
class Schedule:
    """Submits the trainings that are due, and starts the trials of what they have published.

    Args:
        clock: Seconds since the epoch.
    """

    home: Home
    database: JobsDatabase
    schedules: dict[str, ScheduleConfig]
    clock: Callable[[], float] = time.time
    _looked_at_s: float = float("-inf")

    def __post_init__(self) -> None:
        self._queue = JobQueue(self.database, clock=self.clock)
        self._store = AdapterStore(self.home.adapters)

    def step(self) -> list[Job]:
        """Look at all schedules, at most once a minute; returns the jobs that were submitted.

        What is wrong with one adapter is logged, and the others go on.
        """
        now_s = self.clock()
        if not self.schedules or abs(now_s - self._looked_at_s) < _EVERY_S:
            return []
        self._looked_at_s = now_s
        submitted = []
        with file_lock(self.home.jobs / ".schedule.lock"):  # several workers may share the folder
            for name, schedule in self.schedules.items():
                try:
                    self._begin_trial(name, schedule)
                    for due in due_jobs(self.home, self._queue, self._store, {name: schedule}, now_s):
                        submitted.append(self._submit(due, schedule))
                except (AdapterError, JobsError, QualityError, ConfigError, DatasetError, TrainError) as error:
                    logger.warning("The schedule of %s failed: %s", name, error)
        return submitted

    def _begin_trial(self, name: str, schedule: ScheduleConfig) -> None:
        """Give the canary that a scheduled job has published its share of the requests, once."""
        job = _last_job(self._queue, name)
        if job is None or job.version is None:
            return
        history = self._store.history(name)
        trial = current_trial(history)
        moves = [index for index, event in enumerate(history) if event.alias == CANARY_ALIAS]
        is_ours = trial is not None and job.version == f"{name}@{trial.canary}"
        if is_ours and not any(event.kind == "split" for event in history[moves[-1] :]):
            reason = f"scheduled training {job.id}"
            is_shadow = schedule.canary_weight is None
            self._store.set_aliases(name, {}, schedule.canary_weight, is_shadow, reason)
            logger.info("%s starts its trial as the canary of %s", job.version, name)

    def _submit(self, due: DueTraining, schedule: ScheduleConfig) -> Job:
        from train.data.feedback.build import FromSamples, build_from_samples

        settings = FromSamples.model_validate(schedule.model_dump(include=set(FromSamples.model_fields)))
        built = build_from_samples(self.home, due.name, settings)
        recipe = recipe_of(schedule.domain or Path("config/domains") / f"{due.name}.yaml")
        owner = self._owner(due.name)
        files = [self._store_file(owner, due.name, path) for path in (built.train_file, built.held_out_file)]
        method = "supervised" if schedule.kind == "sft" else "dpo"
        target = self._store.resolve(due.stable)
        job = Job(
            id=new_id("ftjob-"),
            owner=owner,
            model=due.stable,
            base=find_base(self.home.bases, self._store.manifest(target).base, due.stable).name,
            adapter=due.name,
            from_version=due.stable,
            training_file=files[0].id,
            validation_file=files[1].id,
            suffix=due.name,
            seed=0,
            metadata={_METADATA: due.name, "dataset": f"{built.manifest.domain} {built.manifest.version}"},
            method={"type": method, method: {"hyperparameters": {}}},
            lorikeet={"domain": recipe, "alias": CANARY_ALIAS},
            created_at=int(self.clock()),
        )
        logger.info("%s: %d new corrections; training continues from %s", due.name, due.num_corrections, due.stable)
        return self._queue.submit(job)

    def _owner(self, adapter: str) -> str:
        names = ModelNames(self.database)
        try:
            return names.owner_of(adapter) or _EVERYBODYS
        finally:
            names.close()

    def _store_file(self, owner: str, name: str, path: Path) -> StoredFile:
        store = FileStore(self.database, self.home.jobs, clock=self.clock)
        with store.begin(owner, "fine-tune", f"{name}-{path.name}", is_limited=False) as incoming:
            incoming.write(path.read_bytes())
            return incoming.finish()


def due_jobs(
    home: Home, queue: JobQueue, store: AdapterStore, schedules: dict[str, ScheduleConfig], now_s: float
) -> Iterator[DueTraining]:
    """Adapters whose schedule is due: enough new corrections, no such job unfinished, no canary on trial.

    Raises:
        AdapterNotFoundError: The adapter has no stable version to go on from.
        QualityStoreError: The store of samples cannot be read.
    """
    for name, schedule in schedules.items():
        stable = str(store.resolve(f"{name}@stable"))
        last = _last_job(queue, name)
        since_s = 0.0 if last is None else float(last.created_at)
        is_waiting = last is not None and (not last.has_ended or now_s - since_s < 3600 * schedule.every_hours)
        if is_waiting or current_trial(store.history(name)) is not None:
            continue
        num = num_corrections(home, name, since_s, schedule)
        if num >= schedule.after_corrections:
            yield DueTraining(name, stable, num)


def num_corrections(home: Home, name: str, since_s: float, schedule: ScheduleConfig) -> int:
    """Corrections, and preferences where those are trained on, stored since a time; of one user at most the share that
    may become rows."""
    from train.data.feedback.shares import rows_allowed

    if not home.quality.is_file():
        return 0
    with QualityStore(home.quality) as samples:
        given = samples.feedback(name, since_s=since_s)
    counts = Counter(
        each.who
        for each in given
        if each.correction is not None or (schedule.kind == "preference" and each.over_id is not None)
    )
    allowed = rows_allowed(list(counts.values()), 0, schedule.max_user_share)
    return sum(min(count, allowed) for count in counts.values())


def recipe_of(path: Path) -> dict[str, Any]:
    """What a job takes of a domain's YAML: all but its name, its data, and what jobs may not do (recipe.py).

    Raises:
        ConfigError: The file is missing, or not YAML.
    """
    given = read_mapping(path)
    recipe = {key: given[key] for key in _RECIPE_KEYS if key in given}
    recipe["recipe"] = _without(recipe.get("recipe"), "report_to", "seed")
    recipe["evaluation"] = _without(recipe.get("evaluation"))
    recipe["evaluation"]["forgetting"] = _without(recipe["evaluation"].get("forgetting"), "other_domains")
    if robustness := recipe["evaluation"].get("robustness"):
        recipe["evaluation"]["robustness"] = _without_other_domains(robustness)
    return dict(json.loads(json.dumps(recipe, default=str)))


def _without(section: Any, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys} if isinstance(section, dict) else {}


def _without_other_domains(robustness: Any) -> dict[str, Any] | None:
    """Perturbations but for the one that asks questions of other domains."""
    settings = _without(robustness)
    names = [name for name in settings.get("perturbations", PERTURBATIONS) if name != "neighbouring_domain"]
    return settings | {"perturbations": names} if names else None


def _last_job(queue: JobQueue, name: str) -> Job | None:
    return next(iter(queue.list(None, limit=1, metadata={_METADATA: name}).items), None)
