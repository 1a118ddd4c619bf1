"""Scheduled trainings: when one is due, what is submitted, and how what comes of it is tried."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import yaml

from adapters.bases import read_base
from adapters.jobs.database import JobsDatabase
from adapters.jobs.models import ModelNames
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job
from adapters.release.traffic import Split, current_split
from adapters.release.trials import current_trial
from adapters.store.store import AdapterStore
from config.domain import DomainConfig
from config.home import Home
from config.jobs import ScheduleConfig
from tests.clock import FakeClock
from tests.peft_folders import draft_for, write_base_folder, write_peft_folder
from tests.tracked_files import ROOT
from tests.train.data.feedback.said import Said, begin
from train.jobs.recipe import check_settings, read_recipe
from train.jobs.schedule import Schedule, num_corrections, recipe_of

DOMAIN = {
    "name": "medical",
    "description": "Chapters.",
    "base": "tiny",
    "data": {"source": "icd10cm"},
    "chat": {"system": "Chapter, as JSON."},
    "gates": {"min_gain": 0.0},
    "recipe": {"max_steps": 5, "report_to": ["mlflow"], "seed": 3},
}
NUM = 12


class NoNames:
    """Of a server without jobs."""

    def owner_of(self, adapter: str) -> str | None:
        return None


NO_NAMES = cast(ModelNames, NoNames())


@dataclass
class Shop:
    """A store with `medical@1` as stable, corrections of its answers, and a schedule for it."""

    home: Home
    said: Said
    store: AdapterStore
    queue: JobQueue
    schedule: Schedule
    clock: FakeClock

    def correct(self, num: int, who: str = "") -> None:
        for number in range(num):
            topic = f"{who or number} {'abcdefghijklmnopqrstuvwxyz'[number]} complaint about knees"
            self.said.feedback(self.said.answer(topic, "x"), who or f"u{number}", None, "knee")

    def publish(self) -> int:
        folder = write_peft_folder(self.home.root / "made")
        base = read_base(self.home.bases / "tiny")
        return self.store.publish(folder, draft_for(folder, "medical", base=base.ref)).version

    def step(self, hours: float = 1.0) -> list[Job]:
        self.clock.now_s += 3600 * hours
        return self.schedule.step()

    def finish(self, job: Job, version: str | None = None) -> None:
        claimed = self.queue.validated(job.id)
        assert claimed.status == "queued"
        self.queue.claim("worker")
        self.queue.finish(job.id, "worker", "succeeded", version=version)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    home = Home(tmp_path / "home")
    said = begin(home)
    write_base_folder(home.bases / "tiny")
    domain = tmp_path / "medical.yaml"
    domain.write_text(yaml.safe_dump(DOMAIN))
    clock = FakeClock(said.now_s)
    settings = ScheduleConfig(after_corrections=NUM, domain=domain, max_user_share=0.1)
    with JobsDatabase(home.jobs / "jobs.sqlite3") as database:
        schedule = Schedule(home, database, {"medical": settings}, clock)
        store = AdapterStore(home.adapters)
        shop = Shop(home, said, store, JobQueue(database, clock=clock), schedule, clock)
        store.promote("medical", shop.publish())
        yield shop
    said.store.close()


def test_enough_corrections_submit_a_job_that_goes_on_from_stable(shop: Shop) -> None:
    shop.correct(NUM)
    (job,) = shop.step()
    assert shop.queue.get(None, job.id) == job
    assert (job.model, job.from_version, job.adapter, job.base) == ("medical@1", "medical@1", "medical", "tiny")
    assert job.lorikeet["alias"] == "canary"
    assert job.lorikeet["domain"]["gates"] == {"min_gain": 0.0}


def test_the_rows_and_the_held_out_rows_are_the_jobs_files(shop: Shop) -> None:
    shop.correct(NUM)
    (job,) = shop.step()
    contents = [path.read_text() for path in (shop.home.jobs / "files").rglob("*") if path.is_file()]
    assert sorted(text.count("\n") for text in contents) == [8, NUM]
    assert job.validation_file is not None


def test_too_few_corrections_submit_nothing(shop: Shop) -> None:
    shop.correct(NUM - 1)
    assert shop.step() == []


def test_one_user_alone_starts_no_training(shop: Shop) -> None:
    shop.correct(2 * NUM, who="zealot")
    assert shop.step() == []


@pytest.mark.slow
def test_corrections_of_before_the_last_training_count_once(shop: Shop) -> None:
    shop.correct(NUM)
    (job,) = shop.step()
    shop.finish(job)
    assert shop.step(hours=100) == []
    shop.said.now_s = shop.clock.now_s
    shop.correct(NUM)
    assert len(shop.step()) == 1


def test_an_unfinished_training_is_waited_for(shop: Shop) -> None:
    shop.correct(NUM)
    assert len(shop.step()) == 1
    shop.said.now_s = shop.clock.now_s + 1
    shop.correct(NUM)
    assert shop.step(hours=100) == []


def test_a_canary_on_trial_is_waited_for(shop: Shop) -> None:
    shop.store.set_aliases("medical", {"canary": shop.publish()})
    shop.correct(NUM)
    assert shop.step() == []


def test_what_a_training_published_is_tried_as_canary_once(shop: Shop) -> None:
    shop.correct(NUM)
    (job,) = shop.step()
    version = shop.publish()
    shop.store.promote("medical", version, "canary")
    shop.finish(job, f"medical@{version}")
    shop.step()
    trial = current_trial(shop.store.history("medical"))
    assert trial is not None
    assert (trial.stable, trial.canary) == (1, version)
    assert current_split(shop.store.history("medical")) == Split(0.1)
    shop.store.set_aliases("medical", {}, 0.0)  # the operator's word stands
    shop.step()
    assert current_split(shop.store.history("medical")) == Split(0.0)


def test_an_adapter_that_is_not_there_stops_no_other(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.schedule.schedules = {"legal": ScheduleConfig()} | shop.schedule.schedules
    shop.correct(NUM)
    assert [job.adapter for job in shop.step()] == ["medical"]
    assert "The schedule of legal" in caplog.text


def test_schedules_are_looked_at_once_a_minute(shop: Shop) -> None:
    assert shop.step() == []
    shop.correct(NUM)
    assert shop.step(hours=0.01) == []
    assert len(shop.step(hours=0.01)) == 1


def test_a_users_corrections_count_up_to_the_share(shop: Shop) -> None:
    shop.correct(9)
    shop.correct(20, who="zealot")
    assert num_corrections(shop.home, "medical", 0.0, ScheduleConfig(max_user_share=0.25)) == 12


@pytest.mark.parametrize("name", ["medical", "finance", "legal"])
def test_a_packaged_domain_is_a_recipe_that_jobs_may_have(shop: Shop, name: str) -> None:
    recipe = recipe_of(ROOT / "config" / "domains" / f"{name}.yaml")
    shop.correct(NUM)
    (job,) = shop.step()
    assert read_recipe(job.model_copy(update={"lorikeet": {"domain": recipe}})) == recipe
    data = {"path": "rows.jsonl"}
    check_settings(job, DomainConfig.model_validate(recipe | {"name": name, "data": data}), NO_NAMES)


def test_a_recipe_leaves_out_what_the_job_has(tmp_path: Path) -> None:
    path = tmp_path / "medical.yaml"
    path.write_text(yaml.safe_dump(DOMAIN))
    recipe = recipe_of(path)
    assert recipe.keys() == {"description", "chat", "gates", "recipe", "evaluation"}
    assert (recipe["recipe"], recipe["gates"]) == ({"max_steps": 5}, {"min_gain": 0.0})
