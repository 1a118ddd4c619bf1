"""API keys: who gets in, what the file holds, and what happens to it while the server runs."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.errors import ConfigError
from serve.access.keys import (
    ANONYMOUS,
    CreatedKey,
    KeyGrant,
    KeyRing,
    create_key,
    list_keys,
    may_use,
    revoke_key,
)
from serve.errors import UnauthorizedError
from tests.clock import FakeClock

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


def made(path: Path, tenant: str = "acme", **grant: Any) -> CreatedKey:
    return create_key(path, KeyGrant(tenant=tenant, **grant), now=NOW)


def bearer(key: CreatedKey) -> str:
    return f"Bearer {key.token}"


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def eager_ring(path: Path) -> KeyRing:
    """Looks at the file every time."""
    return KeyRing(path, check_interval_s=0)


def test_a_token_authenticates_as_its_key(path: Path) -> None:
    first, second = made(path, "acme", requests_per_minute=60), made(path, "umbrella", is_admin=True)
    ring = KeyRing(path)
    assert ring.authenticate(bearer(first)) == first.record
    assert ring.authenticate(bearer(second)) == second.record


@pytest.mark.parametrize("written", ["bearer {}", "BEARER {}", "Bearer   {}", "Bearer {} "])
def test_the_scheme_is_read_as_http_writes_it(path: Path, written: str) -> None:
    key = made(path)
    assert KeyRing(path).authenticate(written.format(key.token)) == key.record


@pytest.mark.parametrize("header", [None, ""])
def test_a_request_without_a_key_is_told_how_to_send_one(path: Path, header: str | None) -> None:
    made(path)
    with pytest.raises(UnauthorizedError, match=r"is missing\. Send it as `Authorization: Bearer lk-"):
        KeyRing(path).authenticate(header)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Basic YWNtZTpzZWNyZXQ=",
        "Bearer sk-" + "a" * 43,
        "Bearer lk-" + "a" * 42,
        "Bearer lk-" + "a" * 44,
        "Bearer lk-" + "a" * 42 + "ä",
        "Bearer lk-" + "a" * 42 + "\ud800",
        "Bearer lk-" + "a" * 43 + "\n",
        "Bearer lk-" + "a" * 20 + " " + "a" * 22,
        "lk-" + "a" * 43,
        "Bearer lk-" + "a" * 43 + ", Bearer lk-" + "b" * 43,
    ],
)
def test_a_malformed_header_is_refused_and_not_repeated(path: Path, header: str) -> None:
    made(path)
    with pytest.raises(UnauthorizedError, match="does not contain an API key of this server") as refusal:
        KeyRing(path).authenticate(header)
    assert "aaaa" not in str(refusal.value)


def test_an_unknown_and_a_revoked_key_get_the_same_answer(path: Path) -> None:
    revoked = made(path)
    revoke_key(path, revoked.record.id, now=LATER)
    ring = KeyRing(path)
    with pytest.raises(UnauthorizedError) as of_revoked:
        ring.authenticate(bearer(revoked))
    with pytest.raises(UnauthorizedError) as of_unknown:
        ring.authenticate("Bearer lk-" + "a" * 43)
    assert str(of_revoked.value) == str(of_unknown.value)
    assert (of_revoked.value.status, of_revoked.value.code) == (401, "invalid_api_key")


def test_the_hash_itself_is_no_key(path: Path) -> None:
    key = made(path)
    with pytest.raises(UnauthorizedError):
        KeyRing(path).authenticate(f"Bearer {key.record.sha256}")


def test_a_file_without_keys_lets_nobody_in(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"keys": []}')
    with pytest.raises(UnauthorizedError):
        KeyRing(path).authenticate("Bearer lk-" + "a" * 43)


@pytest.mark.parametrize("header", [None, "", "Bearer whatever"])
def test_without_a_key_file_everybody_is_anonymous_and_may_do_everything(header: str | None) -> None:
    record = KeyRing(None).authenticate(header)
    assert record is ANONYMOUS
    assert record.is_admin
    assert may_use(record, "medical@3")
    assert (record.requests_per_minute, record.tokens_per_minute, record.max_concurrency) == (None, None, None)


@pytest.mark.parametrize(
    ("globs", "name", "is_allowed"),
    [
        (("*",), "medical", True),
        (("*",), "Qwen/Qwen2.5-0.5B", True),
        (("medical",), "medical", True),
        (("medical",), "medical@3", True),
        (("medical",), "medical@canary", True),
        (("medical",), "medical-eu", False),
        (("medical",), "Medical", False),
        (("med-*",), "med-eu", True),
        (("med-*",), "medical", False),
        (("legal", "med*"), "medical", True),
        (("legal",), "tiny-base", False),
        (("legal", "tiny-base"), "tiny-base", True),
    ],
)
def test_globs_say_which_adapters_a_key_may_use(globs: tuple[str, ...], name: str, is_allowed: bool) -> None:
    record = ANONYMOUS.model_copy(update={"adapters": globs})
    assert may_use(record, name) is is_allowed


@pytest.mark.parametrize(
    ("grant", "message"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": "acme\n"}, "tenant"),
        ({"tenant": "x" * 64}, "tenant"),
        ({"tenant": "acme", "adapters": ()}, "adapters"),
        ({"tenant": "acme", "adapters": ("medical@3",)}, "without version or alias"),
        ({"tenant": "acme", "adapters": ("",)}, "cannot match any name"),
        ({"tenant": "acme", "requests_per_minute": 0}, "requests_per_minute"),
        ({"tenant": "acme", "tokens_per_minute": -1}, "tokens_per_minute"),
        ({"tenant": "acme", "max_concurrency": 0}, "max_concurrency"),
        ({"tenant": "acme", "colour": "red"}, "colour"),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(grant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KeyGrant(**grant)


def test_a_token_has_256_bits_and_none_is_like_another(path: Path) -> None:
    tokens = {made(path).token for _ in range(20)}
    assert len(tokens) == 20
    assert {len(token) for token in tokens} == {len("lk-") + 43}


def test_only_the_hash_of_a_token_is_stored(path: Path) -> None:
    key = made(path)
    text = path.read_text()
    assert key.token not in text
    assert hashlib.sha256(key.token.encode()).hexdigest() in text


def test_neither_token_nor_hash_is_in_a_repr(path: Path) -> None:
    key = made(path)
    assert key.token not in repr(key)
    assert key.record.sha256 not in repr(key)


def test_the_file_is_for_its_owner_alone_and_nothing_else_stays_beside_it(path: Path) -> None:
    key = made(path)
    revoke_key(path, key.record.id, now=LATER)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(path.parent)) == [".keys.json.lock", "keys.json"]


def test_keys_are_listed_as_they_were_made(path: Path) -> None:
    grant = {"adapters": ("med-*", "legal"), "tokens_per_minute": 5000, "max_concurrency": 4, "priority": -2}
    first, second = made(path, "acme", **grant), made(path, "umbrella")
    assert list_keys(path) == (first.record, second.record)
    assert first.record.created_at == "2026-11-21T12:00:00+00:00"
    assert first.record.adapters == ("med-*", "legal")


def test_where_there_is_no_file_there_are_no_keys(path: Path) -> None:
    assert list_keys(path) == ()


def test_many_keys_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: made(path, f"tenant-{number}"), range(16)))
    assert {record.id for record in list_keys(path)} == {key.record.id for key in keys}


def test_a_key_is_revoked_once_and_keeps_its_date(path: Path) -> None:
    kept, key = made(path), made(path)
    first = revoke_key(path, key.record.id, now=NOW)
    again = revoke_key(path, key.record.id, now=LATER)
    assert first == again
    assert first.revoked_at == "2026-11-21T12:00:00+00:00"
    assert list_keys(path) == (kept.record, first)


@pytest.mark.parametrize("key_id", ["00000000", "", "../etc"])
def test_an_id_that_is_not_there_cannot_be_revoked(path: Path, key_id: str) -> None:
    made(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"no key has the id '.*`lorikeet keys list`"):
        revoke_key(path, key_id, now=NOW)
    assert path.read_bytes() == before


def test_nothing_can_be_revoked_where_there_is_no_file(path: Path) -> None:
    with pytest.raises(ConfigError, match="the key file does not exist"):
        revoke_key(path, "00000000", now=NOW)
    assert not path.parent.exists()


def test_a_broken_file_is_not_overwritten_by_a_new_key(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ConfigError):
        made(path)
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("[]", "(whole file)"),
        ('{"keys": [{}]}', "`keys.0.tenant`: Field required"),
        ('{"keyz": []}', "`keyz`"),
        ('{"keys": 7}', "`keys`"),
    ],
)
def test_a_broken_file_stops_the_start_and_says_where_it_is_broken(path: Path, text: str, message: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        KeyRing(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_text_stops_the_start(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="Invalid JSON"):
        KeyRing(path)


def test_a_missing_file_stops_the_start_and_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*`lorikeet keys create TENANT`"):
        KeyRing(path)


@pytest.mark.parametrize("field", ["id", "sha256"])
def test_a_key_that_is_there_twice_stops_the_start(path: Path, field: str) -> None:
    first, second = made(path).record, made(path).record
    twin = second.model_copy(update={field: getattr(first, field)})
    path.write_text(json.dumps({"keys": [first.model_dump(), twin.model_dump()]}))
    with pytest.raises(ConfigError, match=f"two keys have the same `{field}`"):
        KeyRing(path)


def test_an_error_never_repeats_what_somebody_pasted_into_the_file(path: Path) -> None:
    key = made(path)
    pasted = key.record.model_dump() | {"sha256": key.token, "token": key.token}
    path.write_text(json.dumps({"keys": [pasted]}))
    with pytest.raises(ConfigError) as error:
        KeyRing(path)
    assert key.token not in str(error.value)
    assert error.value.__cause__ is None


def test_a_new_key_gets_in_and_a_revoked_one_does_not_without_a_restart(path: Path) -> None:
    old = made(path)
    ring = eager_ring(path)
    new = made(path)
    revoke_key(path, old.record.id, now=LATER)
    assert ring.authenticate(bearer(new)) == new.record
    with pytest.raises(UnauthorizedError):
        ring.authenticate(bearer(old))


def test_the_file_is_looked_at_no_more_often_than_asked(path: Path) -> None:
    made(path)
    clock = FakeClock()
    ring = KeyRing(path, check_interval_s=5, clock=clock)
    new = made(path)
    clock.now_s += 4.9
    with pytest.raises(UnauthorizedError):
        ring.authenticate(bearer(new))
    clock.now_s += 0.1
    assert ring.authenticate(bearer(new)) == new.record


def test_a_file_that_breaks_leaves_the_last_good_keys_and_one_line_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = made(path)
    ring = eager_ring(path)
    path.write_text("{")
    assert [ring.authenticate(bearer(key)) for _ in range(3)] == [key.record] * 3
    errors = errors_in(caplog)
    assert len(errors) == 1
    assert "last valid keys stay in effect" in errors[0]


def test_every_new_way_of_being_broken_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = made(path)
    ring = eager_ring(path)
    path.write_text("{")
    ring.authenticate(bearer(key))
    path.write_text("[[")
    ring.authenticate(bearer(key))
    assert len(errors_in(caplog)) == 2


def test_a_file_that_vanishes_leaves_the_last_good_keys_and_comes_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = made(path)
    ring = eager_ring(path)
    path.unlink()
    assert [ring.authenticate(bearer(key)) for _ in range(3)] == [key.record] * 3
    assert len(errors_in(caplog)) == 1
    other = made(path)
    assert ring.authenticate(bearer(other)) == other.record
    with pytest.raises(UnauthorizedError):
        ring.authenticate(bearer(key))


def test_a_file_that_was_mended_counts_again(path: Path) -> None:
    key = made(path)
    ring = eager_ring(path)
    good = path.read_bytes()
    path.write_text("{")
    ring.authenticate(bearer(key))
    path.write_bytes(good)
    revoke_key(path, key.record.id, now=LATER)
    with pytest.raises(UnauthorizedError):
        ring.authenticate(bearer(key))
