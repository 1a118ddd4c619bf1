import hashlib

import pytest

from adapters.jobs.errors import (
    FileTooLargeError,
    InvalidStatusError,
    InvalidUploadError,
    QuotaExceededError,
    UnknownIdError,
)
from adapters.jobs.records import FileLimits, Upload
from adapters.jobs.uploads import MAX_PARTS, UPLOAD_EXPIRY_S
from tests.jobs_home import JobsHome

WHOLE = b"first second third"


def started(home: JobsHome, num_bytes: int = len(WHOLE)) -> Upload:
    return home.uploads.create("acme", "fine-tune", "large.jsonl", num_bytes, "text/jsonl")


def sent(home: JobsHome, upload: Upload, content: bytes) -> str:
    with home.uploads.begin_part("acme", upload.id) as part:
        part.write(content)
        return part.finish().id


def all_sent(home: JobsHome, upload: Upload) -> list[str]:
    """Sent in another order than they belong."""
    third, first, second = (sent(home, upload, content) for content in (b" third", b"first", b" second"))
    return [first, second, third]


def assert_no_traces(home: JobsHome) -> None:
    assert home.content("parts") == home.content("incoming") == []


def test_parts_are_joined_in_the_order_asked_for(home):
    upload = started(home)
    parts = all_sent(home, upload)
    file = home.uploads.complete("acme", upload.id, parts, hashlib.md5(WHOLE).hexdigest()).finish()
    with home.files.open("acme", file.id) as content:
        assert content.read() == WHOLE
    done = home.uploads.get("acme", upload.id)
    assert (done.status, home.uploads.finished_file(done)) == ("completed", file)
    assert_no_traces(home)


def test_an_upload_survives_a_restart(home):
    upload = started(home)
    parts = all_sent(home, upload)
    with home.again() as later:
        later.files.sweep()
        assert later.uploads.complete("acme", upload.id, parts).finish().num_bytes == len(WHOLE)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([0, 1], r"12 bytes together; the upload was created with 18"),
        ([0, 1, 1], "names a part twice"),
        ([0, 1, 2, 2], "names a part twice"),
        ([], "0 bytes together"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(home, chosen, message):
    upload = started(home)
    parts = all_sent(home, upload)
    with pytest.raises(InvalidUploadError, match=message):
        home.uploads.complete("acme", upload.id, [parts[index] for index in chosen])
    assert home.uploads.get("acme", upload.id).status == "pending"


def test_a_wrong_checksum_leaves_the_upload_pending(home):
    upload = started(home)
    parts = all_sent(home, upload)
    with pytest.raises(InvalidUploadError, match="MD5"):
        home.uploads.complete("acme", upload.id, parts, "0" * 32)
    assert home.content("incoming") == []
    assert home.uploads.complete("acme", upload.id, parts).finish().num_bytes == len(WHOLE)


def test_a_part_of_another_upload_is_refused(home):
    other = started(home)
    foreign = sent(home, other, WHOLE)
    with pytest.raises(InvalidUploadError, match=foreign):
        home.uploads.complete("acme", started(home).id, [foreign])


def test_a_joined_file_that_is_discarded_changes_nothing(home):
    upload = started(home)
    parts = all_sent(home, upload)
    home.uploads.complete("acme", upload.id, parts).discard()
    assert home.uploads.get("acme", upload.id).status == "pending"
    assert len(home.content("parts")) == 3


def test_an_upload_is_completed_once(home):
    upload = started(home)
    parts = all_sent(home, upload)
    first, second = (home.uploads.complete("acme", upload.id, parts) for _ in range(2))
    file = first.finish()
    with pytest.raises(InvalidStatusError, match="is completed"):
        second.finish()
    with pytest.raises(InvalidStatusError):
        home.uploads.complete("acme", upload.id, parts)
    assert home.files.list("acme").items == (file,)
    with home.files.open("acme", file.id) as content:
        assert content.read() == WHOLE


def test_a_part_may_be_sent_again(home):
    upload = started(home)
    sent(home, upload, WHOLE)
    again = sent(home, upload, WHOLE)
    assert home.uploads.complete("acme", upload.id, [again]).finish().num_bytes == len(WHOLE)


def test_parts_are_bounded(home):
    upload = started(home, 4)
    with pytest.raises(FileTooLargeError):
        sent(home, upload, b"12345")
    for _ in range(2):
        sent(home, upload, b"1234")
    with pytest.raises(InvalidUploadError, match="12 bytes"):
        sent(home, upload, b"1234")
    assert len(home.content("parts")) == 2


def test_parts_are_counted(home):
    upload = started(home)
    with home.database.writing() as connection:
        rows = [(f"part_{number}", upload.id) for number in range(MAX_PARTS)]
        connection.executemany("INSERT INTO parts (id, upload_id, num_bytes, created_at) VALUES (?, ?, 0, 0)", rows)
    with pytest.raises(InvalidUploadError, match="at most 1000 parts"):
        sent(home, upload, b"")


def test_an_ended_upload_is_forgotten_after_a_day(home):
    upload = started(home)
    home.uploads.cancel("acme", upload.id)
    home.files.sweep()
    assert home.uploads.get("acme", upload.id).status == "cancelled"
    home.clock.now_s += UPLOAD_EXPIRY_S + 86_400
    home.files.sweep()
    with pytest.raises(UnknownIdError):
        home.uploads.get("acme", upload.id)


def test_a_cancelled_upload_takes_no_more_parts(home):
    upload = started(home)
    sent(home, upload, b"first")
    arriving = home.uploads.begin_part("acme", upload.id)
    assert home.uploads.cancel("acme", upload.id).status == "cancelled"
    with pytest.raises(InvalidStatusError):
        arriving.finish()
    with pytest.raises(InvalidStatusError):
        home.uploads.begin_part("acme", upload.id)
    with pytest.raises(InvalidStatusError):
        home.uploads.cancel("acme", upload.id)
    assert home.files.used_bytes("acme") == 0
    assert_no_traces(home)


def test_an_upload_expires_with_its_parts(home):
    upload = started(home)
    sent(home, upload, b"first")
    home.clock.now_s += UPLOAD_EXPIRY_S
    assert home.uploads.get("acme", upload.id).status == "expired"
    with pytest.raises(InvalidStatusError, match="is expired"):
        home.uploads.begin_part("acme", upload.id)
    home.files.sweep()
    assert home.files.used_bytes("acme") == 0
    assert_no_traces(home)


def test_a_strangers_upload_is_unknown(home):
    upload = started(home)
    acts = (home.uploads.get, home.uploads.cancel, home.uploads.begin_part)
    for act in acts:
        with pytest.raises(UnknownIdError, match="No such Upload"):
            act("globex", upload.id)
    with pytest.raises(UnknownIdError):
        home.uploads.complete("globex", upload.id, [])


def test_announced_bytes_count_at_once(tmp_path):
    with JobsHome(tmp_path, FileLimits(max_bytes_per_tenant=30, max_file_bytes=25)) as home:
        upload = started(home)
        with pytest.raises(QuotaExceededError):
            started(home)
        with pytest.raises(FileTooLargeError):
            started(home, 26)
        home.uploads.complete("acme", upload.id, all_sent(home, upload)).finish()
        assert home.files.used_bytes("acme") == len(WHOLE)
