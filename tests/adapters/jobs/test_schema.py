"""What runs several times a second must not read all jobs and batches that have ended, which are kept."""

import pytest

from tests.jobs_home import JobsHome

POLLS = {
    "claim": lambda home: home.queue.claim("w1"),
    "jobs by status": lambda home: home.queue.list(None, statuses=("validating_files",), limit=100),
    "lost jobs": lambda home: home.queue.release_lost(),
    "jobs of a worker": lambda home: home.queue.release_lost(worker="w1"),
    "keys of jobs": lambda home: home.queue.unfinished_keys(),
    "claim of a batch": lambda home: home.batches.claim("w1"),
    "lost batches": lambda home: home.batches.release_lost(),
    "batches of a worker": lambda home: home.batches.release_lost(worker="w1"),
}


def num_steps(home: JobsHome, poll: str) -> int:
    """Instructions of SQLite's virtual machine."""
    steps: list[None] = []
    with home.database.reading() as connection:
        connection.set_progress_handler(lambda: steps.append(None), 1)
        POLLS[poll](home)
        connection.set_progress_handler(None, 1)
    return len(steps)


def add_ended(home: JobsHome, num: int) -> None:
    for _ in range(num):
        home.queue.ask("acme", home.submitted().id, "cancel")
        home.batches.cancel("acme", home.batch().id)


@pytest.mark.slow
@pytest.mark.parametrize("poll", POLLS)
def test_a_poll_reads_nothing_that_has_ended(home, poll):
    add_ended(home, 1)
    before = num_steps(home, poll)
    add_ended(home, 20)
    assert num_steps(home, poll) == before
