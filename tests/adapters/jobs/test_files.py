import hashlib
import stat
from pathlib import Path

import pytest

from adapters.jobs.errors import FileTooLargeError, JobsStoreError, QuotaExceededError, UnknownIdError
from adapters.jobs.records import FileLimits
from tests.jobs_home import NOW_S, JobsHome


def test_a_file_comes_back_as_it_was_sent(home):
    with home.files.begin("acme", "fine-tune", "train.jsonl") as incoming:
        incoming.write(b"one\n")
        incoming.write(b"two\n")
        file = incoming.finish()
    assert home.files.get("acme", file.id) == file
    assert (file.filename, file.num_bytes, file.created_at, file.status) == ("train.jsonl", 8, int(NOW_S), "processed")
    assert file.sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()
    with home.files.open("acme", file.id) as content:
        assert content.read() == b"one\ntwo\n"


def test_another_process_sees_a_finished_file(home):
    file = home.stored(b"x")
    with home.again() as other:
        assert other.files.get("acme", file.id) == file


def test_content_of_two_files_is_stored_once(home):
    first, second = home.stored(b"same"), home.stored(b"same", owner="globex")
    assert home.content() == [first.sha256]
    home.files.delete("acme", first.id)
    with home.files.open("globex", second.id) as content:
        assert content.read() == b"same"
    home.files.delete("globex", second.id)
    assert home.content() == []


def test_an_arriving_file_is_invisible_and_readable(home):
    with home.files.begin("acme", "fine-tune", "a") as incoming:
        incoming.write(b"line\n")
        incoming.flush()
        assert incoming.path.read_bytes() == b"line\n"
        assert home.files.list(None).items == ()
        home.files.sweep()
        assert incoming.finish("error", "line 1 must be JSON").status_details == "line 1 must be JSON"


def test_a_file_that_is_not_finished_leaves_nothing(home):
    with home.files.begin("acme", "fine-tune", "a") as incoming:
        incoming.write(b"x" * 100)
    assert (home.content("incoming"), home.content(), home.files.used_bytes("acme")) == ([], [], 0)


@pytest.mark.parametrize("act", ["get", "open", "delete"])
def test_a_strangers_file_looks_like_none(home, act):
    file = home.stored(owner="globex")
    with pytest.raises(UnknownIdError) as stranger:
        getattr(home.files, act)("acme", file.id)
    with pytest.raises(UnknownIdError) as missing:
        getattr(home.files, act)("acme", "file-" + "0" * 24)
    assert str(stranger.value).replace(file.id, "X") == str(missing.value).replace("file-" + "0" * 24, "X")
    assert home.files.get(None, file.id) == file


def test_a_strangers_file_is_not_listed_after(home):
    stranger = home.stored(owner="globex")
    with pytest.raises(UnknownIdError, match="to list after"):
        home.files.list("acme", after=stranger.id)


def test_files_are_listed_newest_first_in_pages(home):
    files = [home.stored(bytes([number])) for number in range(5)]
    home.stored(owner="globex")
    first = home.files.list("acme", limit=2)
    second = home.files.list("acme", limit=3, after=first.items[-1].id)
    assert (first.items, first.has_more) == ((files[4], files[3]), True)
    assert (second.items, second.has_more) == ((files[2], files[1], files[0]), False)


def test_a_page_is_bounded(home):
    file = home.stored()
    row = "INSERT INTO files SELECT NULL, ?, owner, purpose, '', 1, sha256, 0, NULL, status, NULL, NULL FROM files"
    with home.database.writing() as connection:
        connection.executemany(f"{row} WHERE id = ?", [(f"file-{number}", file.id) for number in range(1200)])
    page = home.files.list("acme", limit=10_000)
    assert (len(page.items), page.has_more) == (1000, True)
    rest = home.files.list("acme", limit=10_000, after=page.items[-1].id)
    assert (len(rest.items), rest.has_more) == (201, False)


def test_files_are_listed_oldest_first(home):
    files = [home.stored(bytes([number])) for number in range(3)]
    assert home.files.list("acme", is_newest_first=False, after=files[0].id).items == tuple(files[1:])


def test_files_are_listed_by_purpose(home):
    home.stored()
    batch = home.stored(purpose="batch")
    assert home.files.list("acme", purpose="batch").items == (batch,)


def test_files_can_be_deleted_page_by_page(home):
    home.stored(b"1")
    second = home.stored(b"2")
    home.files.delete("acme", second.id)
    assert len(home.files.list("acme", after=second.id).items) == 1


def test_a_deleted_file_keeps_no_name(home):
    file = home.stored()
    home.files.delete("acme", file.id)
    with home.database.reading() as connection:
        assert [tuple(row) for row in connection.execute("SELECT filename, id FROM files")] == [("", file.id)]
    home.clock.now_s += 86_401
    home.files.sweep()
    with home.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone()[0] == 0


def test_a_file_is_read_to_its_end_though_deleted(home):
    file = home.stored(b"still here")
    with home.files.open("acme", file.id) as content:
        home.files.delete("acme", file.id)
        assert content.read() == b"still here"


def test_missing_content_is_an_error_of_the_store(home):
    file = home.stored()
    (home.folder / "files" / file.sha256).unlink()
    with pytest.raises(JobsStoreError, match=file.id):
        home.files.open("acme", file.id)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_file_bytes=10)) as home:
        incoming = home.files.begin("acme", "fine-tune", "a")
        incoming.write(b"x" * 10)
        with pytest.raises(FileTooLargeError, match="larger than 10 bytes"):
            incoming.write(b"x")
        assert home.content("incoming") == []


def test_a_tenant_gets_no_more_than_its_quota(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_bytes_per_tenant=10)) as home:
        home.stored(b"x" * 6)
        with pytest.raises(QuotaExceededError, match="exceed 10 bytes"):
            home.stored(b"y" * 5)
        assert (home.content("incoming"), len(home.content())) == ([], 1)
        home.stored(b"y" * 10, owner="globex")
        home.stored(b"y" * 4)
        with pytest.raises(QuotaExceededError):
            home.files.begin("acme", "fine-tune", "a")


def test_a_long_upload_ends_when_the_quota_does(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_bytes_per_tenant=2 << 20)) as home:
        incoming = home.files.begin("acme", "fine-tune", "a")
        megabyte = b"x" * (1 << 20)
        incoming.write(megabyte)
        incoming.write(megabyte)
        with pytest.raises(QuotaExceededError):
            incoming.write(megabyte + megabyte)
        assert home.content("incoming") == []


def test_uploads_at_once_share_the_quota(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_bytes_per_tenant=10)) as home:
        first, second = (home.files.begin("acme", "fine-tune", "a") for _ in range(2))
        first.write(b"x" * 8)
        with pytest.raises(QuotaExceededError):
            second.write(b"y" * 8)
        first.finish()
        assert (home.files.used_bytes("acme"), home.content("incoming")) == (8, [])


def test_processes_share_the_quota(tmp_path):
    limits = FileLimits(max_bytes_per_tenant=10)
    with JobsHome(tmp_path, limits) as home, home.again(limits) as other:
        first = home.files.begin("acme", "fine-tune", "a")
        second = other.files.begin("acme", "fine-tune", "a")
        first.write(b"x" * 8)
        second.write(b"y" * 8)
        first.finish()
        with pytest.raises(QuotaExceededError):
            second.finish()
        assert len(home.content()) == 1


def test_discarded_bytes_are_free_again(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_bytes_per_tenant=10)) as home:
        for _ in range(3):
            with home.files.begin("acme", "fine-tune", "a") as incoming:
                incoming.write(b"x" * 10)
        home.stored(b"x" * 10)


def test_results_count_but_are_never_refused(tmp_path):
    limits = FileLimits(max_bytes_per_tenant=10, max_file_bytes=5)
    with JobsHome(tmp_path, limits) as home:
        with home.files.begin("acme", "fine-tune-results", "metrics.csv", is_limited=False) as incoming:
            incoming.write(b"x" * 20)
            incoming.finish()
        assert home.files.used_bytes("acme") == 20


def test_an_expired_file_is_gone_before_it_is_swept(home):
    with home.files.begin("acme", "batch", "a", expires_after_s=3600) as incoming:
        file = incoming.finish()
    home.clock.now_s += 3600
    with pytest.raises(UnknownIdError):
        home.files.get("acme", file.id)
    assert home.files.list("acme").items == ()
    assert home.files.sweep() == 1
    assert (home.content(), home.files.sweep()) == ([], 0)


def test_files_expire_by_the_default_of_the_server(tmp_path):
    with JobsHome(tmp_path, FileLimits(file_expiry_s=7200)) as home:
        assert home.stored().expires_at == int(NOW_S) + 7200


def test_odd_names_are_stored(home):
    with home.files.begin("acme", "fine-tune", "a\ud800\x00é.jsonl") as incoming:
        file = incoming.finish("error", "half a character: \ud800")
    assert home.files.get("acme", file.id) == file
    assert (file.filename, file.status_details) == ("a?\x00é.jsonl", "half a character: ?")


@pytest.mark.parametrize("file_id", ["", "file-\ud800", "\x00", "x" * 100_000, "' OR 1 = 1 --"])
def test_odd_ids_are_unknown(home, file_id):
    home.stored()
    for act in (home.files.get, home.files.open, home.files.delete):
        with pytest.raises(UnknownIdError) as error:
            act("acme", file_id)
        assert len(str(error.value).encode()) < 200
    with pytest.raises(UnknownIdError):
        home.files.list("acme", after=file_id)


def test_files_of_a_tenant_are_counted(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_files_per_tenant=2)) as home:
        home.uploads.create("acme", "fine-tune", "a", 10)
        file = home.stored()
        with pytest.raises(QuotaExceededError, match="2 files"):
            home.stored()
        with pytest.raises(QuotaExceededError, match="2 files"):
            home.uploads.create("acme", "fine-tune", "a", 10)
        home.files.delete("acme", file.id)
        home.stored()


def test_only_the_owner_of_the_server_reads_files(home):
    file = home.stored()
    paths = [home.folder / "files" / file.sha256, home.folder / "jobs.sqlite3", home.folder / "files"]
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths] == [0, 0, 0]


def test_sweeping_spares_files_that_jobs_use(home):
    file = home.stored(b"rows")
    job = home.submitted(file=file)
    home.files.delete("acme", file.id)
    home.files.sweep()
    assert home.files.held_path(job.id, file.id).read_bytes() == b"rows"
    assert home.files.used_bytes("acme") == 4
    home.clock.now_s += 86_401 * 2
    home.files.sweep()
    assert home.files.used_bytes("acme") == 4
    home.queue.ask("acme", job.id, "cancel")
    with pytest.raises(UnknownIdError, match="has ended"):
        home.files.held_path(job.id, file.id)
    home.files.sweep()
    assert (home.content(), home.files.used_bytes("acme")) == ([], 0)


def test_content_without_a_row_is_swept(home):
    (home.folder / "files" / "0123").write_bytes(b"left by a process that was killed")
    file = home.stored()
    home.files.sweep()
    assert home.content() == [file.sha256]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(JobsStoreError, match="jobs"):
        JobsHome(tmp_path / "jobs")
