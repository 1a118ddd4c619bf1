import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import JobsDiskError, JobsStoreError
from adapters.jobs.queue import JobQueue
from adapters.jobs.schema import FORMAT
from tests.tracked_files import ROOT


def test_a_new_file_is_durable_and_ours(tmp_path):
    with JobsDatabase(tmp_path / "jobs" / "jobs.sqlite3") as database, database.reading() as connection:
        asked = ("application_id", "user_version", "journal_mode", "synchronous")
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert values == [FORMAT.application_id, FORMAT.version, "wal", 2]


def test_another_programs_file_is_refused(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(JobsStoreError, match="another program's"):
        JobsDatabase(path)


def test_a_file_of_a_newer_lorikeet_is_refused(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    with JobsDatabase(path) as database, database.reading() as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT.version + 1}")
    with pytest.raises(JobsStoreError, match=f"schema version {FORMAT.version + 1}"):
        JobsDatabase(path)


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(JobsStoreError, match=r"jobs\.sqlite3"):
        JobsDatabase(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobsStoreError, match=r"file/jobs\.sqlite3"):
        JobsDatabase(tmp_path / "file" / "jobs.sqlite3")


def fail_within(database: JobsDatabase, *, is_inner_complete: bool) -> None:
    with database.writing():
        with database.writing() as connection:
            connection.execute("INSERT INTO adapter_owners VALUES ('a', 'acme')")
            if not is_inner_complete:
                raise KeyError
        raise KeyError


@pytest.mark.parametrize("is_inner_complete", [True, False])
def test_a_failed_transaction_leaves_nothing(tmp_path, is_inner_complete):
    with JobsDatabase(tmp_path / "jobs.sqlite3") as database:
        with pytest.raises(KeyError):
            fail_within(database, is_inner_complete=is_inner_complete)
        with database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM adapter_owners").fetchone()[0] == 0


def test_threads_share_one_database(tmp_path):
    def write(number: int) -> None:
        with database.writing() as connection:
            connection.execute("INSERT INTO adapter_owners VALUES (?, 'acme')", (f"a{number}",))

    with JobsDatabase(tmp_path / "jobs.sqlite3") as database:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM adapter_owners").fetchone()[0] == 8


@pytest.mark.slow
def test_a_forked_child_must_open_its_own(tmp_path):
    with JobsDatabase(tmp_path / "jobs.sqlite3") as database:
        child = os.fork()
        if child == 0:
            try:
                with database.reading():
                    os._exit(0)
            except AssertionError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_locked_file_is_reported(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    with (
        JobsDatabase(path) as one,
        JobsDatabase(path, busy_timeout_s=0.01) as other,
        one.writing(),
        pytest.raises(JobsStoreError, match="locked"),
        other.writing(),
    ):
        pass


def test_a_full_database_gives_up_its_reserve(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    reserve = tmp_path / "jobs.sqlite3.reserve"
    with JobsDatabase(path) as database:
        assert reserve.stat().st_blocks * 512 >= 1 << 20
        with database.reading() as connection:
            connection.execute("PRAGMA max_page_count = 1")

        def fill() -> None:
            with database.writing() as connection:
                connection.execute("CREATE TABLE filling AS SELECT randomblob(1000000)")

        with pytest.raises(JobsDiskError, match="the disk is full"):
            database.with_reserve(fill)
        assert not reserve.exists()
        database.restore_reserve()
        assert reserve.exists()


OPENS = "import sys, pathlib; from adapters.jobs.database import JobsDatabase; JobsDatabase(pathlib.Path(sys.argv[1]))"


@pytest.mark.slow
def test_processes_create_one_file_at_once(tmp_path: Path):
    command = [sys.executable, "-c", OPENS, str(tmp_path / "jobs.sqlite3")]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors


def test_a_file_of_the_first_schema_is_upgraded(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.executescript(FORMAT.migrations[0])
        connection.execute(
            "INSERT INTO jobs (id, owner, model, base, adapter, training_file, seed, method, lorikeet, status, "
            "created_at, result_files, num_losses) "
            "VALUES ('ftjob-1', 'acme', 'b', 'b', 'a', 'file-1', 7, '{}', '{}', 'queued', 1, '[]', 0)"
        )
        connection.execute(f"PRAGMA application_id = {FORMAT.application_id}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with JobsDatabase(path) as database:
        job = JobQueue(database).get("acme", "ftjob-1")
        assert (job.key_id, job.status) == ("", "queued")
        assert JobQueue(database).unfinished_keys() == frozenset()
