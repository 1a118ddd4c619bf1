"""What a job published is found by its id, and finished where its publisher died."""

import time
from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.store.evaluation_records import GateOutcome
from adapters.store.manifest import JobRef, Manifest
from adapters.store.store import AdapterStore
from tests.jobs_on_disk import JobsOnDisk, jobs_on_disk
from tests.peft_folders import draft_for, write_peft_folder
from train.jobs.published import find_version, finish_promotion

PASSED = (GateOutcome(is_met=True, finding="gain of exact_match +0.500 is at least min_gain +0.100"),)
FAILED = (GateOutcome(is_met=False, finding="gain of exact_match +0.000 is below min_gain +0.100"),)


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    return jobs_on_disk(tmp_path)


@pytest.fixture
def store(disk: JobsOnDisk) -> AdapterStore:
    return AdapterStore(disk.home.adapters)


def publish(store: AdapterStore, tmp_path: Path, **fields: object) -> Manifest:
    folder = write_peft_folder(tmp_path / f"peft-{time.monotonic_ns()}")
    return store.publish(folder, draft_for(folder, "colours", **fields))


@pytest.mark.slow
def test_result_and_checkpoints_are_told_apart(disk: JobsOnDisk, store: AdapterStore, tmp_path: Path) -> None:
    job, other = disk.submit(), disk.submit()
    for reference in (JobRef(id=job.id, step=30), JobRef(id=job.id), JobRef(id=other.id), None):
        publish(store, tmp_path, job=reference)
    versions = [find_version(store, job, 30), find_version(store, job), find_version(store, other)]
    assert [found.version for found in versions if found] == [1, 2, 3]
    assert find_version(store, other, 30) is None
    assert find_version(store, disk.submit()) is None


@pytest.mark.parametrize(
    ("gates", "alias", "aliases"),
    [
        (PASSED, "stable", {"stable": 1}),
        (PASSED, "canary", {"canary": 1}),
        (PASSED, None, {}),
        (FAILED, "stable", {}),
        ((), "stable", {}),
    ],
)
def test_an_alias_that_was_to_move_moves_after_a_crash(
    store: AdapterStore, tmp_path: Path, gates: tuple[GateOutcome, ...], alias: str | None, aliases: dict[str, int]
) -> None:
    manifest = publish(store, tmp_path, gates=gates)
    finish_promotion(store, manifest, alias)
    assert store.aliases("colours") == aliases


def test_an_alias_that_has_moved_since_stays(store: AdapterStore, tmp_path: Path) -> None:
    manifest = publish(store, tmp_path, gates=PASSED)
    store.promote("colours", publish(store, tmp_path).version)
    finish_promotion(store, manifest, "stable")
    assert store.resolve("colours") == Target("colours", 2)


def test_a_rolled_back_version_is_not_promoted_again(store: AdapterStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    manifest = publish(store, tmp_path, gates=PASSED)
    store.promote("colours", 1)
    store.promote("colours", 2)
    store.rollback("colours")
    finish_promotion(store, manifest, "stable")
    assert store.resolve("colours") == Target("colours", 1)
