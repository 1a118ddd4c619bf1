"""`lorikeet keys`: what an operator types and reads."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lorikeet import app
from serve.access.keys import KeyRing, list_keys

Run = Callable[..., Result]

WIDE = {"COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def keys(home: Path) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["keys", *arguments, "--home", str(home)], env=WIDE)

    return run


def test_create_prints_the_token_alone_and_says_that_it_is_not_shown_again(keys: Run, home: Path) -> None:
    result = keys("create", "acme")
    assert result.exit_code == 0
    assert re.fullmatch(r"lk-[\w-]{43}\n", result.stdout)
    (record,) = list_keys(home / "keys.json")
    assert f"Created key {record.id} of 'acme'" in result.stderr
    assert "not shown again" in result.stderr


def test_the_printed_token_gets_in(keys: Run, home: Path) -> None:
    token = keys("create", "acme").stdout.strip()
    assert KeyRing(home / "keys.json").authenticate(f"Bearer {token}").tenant == "acme"


def test_create_keeps_everything_that_was_asked(keys: Run, home: Path) -> None:
    keys(
        *("create", "acme", "--adapter", "med-*", "--adapter", "legal", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "90000", "--max-concurrency", "4", "--priority", "-1", "--admin", "--train"),
    )
    (record,) = list_keys(home / "keys.json")
    assert record.adapters == ("med-*", "legal")
    assert (record.requests_per_minute, record.tokens_per_minute, record.max_concurrency) == (60, 90000, 4)
    assert (record.priority, record.is_admin, record.may_train) == (-1, True, True)


def test_a_key_allows_everything_and_nothing_of_the_operator_when_left_out(keys: Run, home: Path) -> None:
    keys("create", "acme")
    (record,) = list_keys(home / "keys.json")
    assert (record.adapters, record.priority, record.is_admin, record.may_train) == (("*",), 0, False, False)
    assert (record.requests_per_minute, record.tokens_per_minute, record.max_concurrency) == (None, None, None)


def test_the_file_may_lie_elsewhere(keys: Run, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "secrets" / "ring.json"
    keys("create", "acme", "--file", str(other))
    assert [record.tenant for record in list_keys(other)] == ["acme"]
    assert "acme" in keys("list", "--file", str(other)).stdout
    assert not home.exists()


def test_list_shows_what_keys_allow_but_neither_tokens_nor_hashes(keys: Run, home: Path) -> None:
    token = keys("create", "acme", "--adapter", "med-[a-c]*", "--requests-per-minute", "60").stdout.strip()
    (record,) = list_keys(home / "keys.json")
    output = keys("list").stdout
    assert all(text in output for text in (record.id, "acme", "med-[a-c]*", "60 req/min"))
    assert token not in output
    assert record.sha256[:12] not in output


def test_list_without_keys_says_how_to_make_one(keys: Run) -> None:
    result = keys("list")
    assert result.exit_code == 0
    assert "lorikeet keys create TENANT" in result.stdout


def test_revoke_keeps_the_key_in_the_list_with_its_date(keys: Run, home: Path) -> None:
    keys("create", "acme")
    (record,) = list_keys(home / "keys.json")
    result = keys("revoke", record.id)
    (revoked,) = list_keys(home / "keys.json")
    assert f"Key {record.id} of 'acme' was revoked at {revoked.revoked_at}" in result.stdout
    assert str(revoked.revoked_at)[:10] in keys("list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a b"], "`tenant`: got 'a b'"),
        (["create", "acme", "--adapter", "medical@3"], "'medical@3' cannot match any name"),
        (["revoke", "deadbeef"], "the key file does not exist"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(keys: Run, home: Path, arguments: list[str], message: str) -> None:
    result = keys(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not home.exists()


def test_an_unknown_id_is_an_error_that_says_where_to_look(keys: Run) -> None:
    keys("create", "acme")
    result = keys("revoke", "[red]")
    assert result.exit_code == 1
    assert "no key has the id '[red]'. `lorikeet keys list` shows the ids." in result.stderr


@pytest.mark.parametrize("command", [["list"], ["create", "acme"], ["revoke", "deadbeef"]])
def test_a_broken_file_is_an_error_and_stays_as_it_is(keys: Run, home: Path, command: list[str]) -> None:
    home.mkdir()
    (home / "keys.json").write_text("{")
    result = keys(*command)
    assert result.exit_code == 1
    assert "Invalid JSON" in result.stderr
    assert (home / "keys.json").read_text() == "{"


@pytest.mark.parametrize("option", ["--requests-per-minute", "--tokens-per-minute", "--max-concurrency"])
def test_a_limit_below_one_is_a_usage_error(keys: Run, home: Path, option: str) -> None:
    assert keys("create", "acme", option, "0").exit_code == 2
    assert not home.exists()
