"""A port that is taken is found out before anything that lasts."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from typer.testing import CliRunner

from config.errors import ConfigError
from config.home import Home
from config.serve import ServeConfig
from lorikeet import app
from serve.access.keys import KeyRing
from serve.cli import run
from serve.errors import AddressError
from serve.listening import listen
from tests.peft_folders import write_base_folder


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of another program."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_free_port_is_listened_on_at_once() -> None:
    (listening,) = listen("127.0.0.1", 0)
    with (
        listening,
        socket.create_connection(listening.getsockname()),
        pytest.raises(AddressError, match="is in use"),
    ):
        listen("127.0.0.1", listening.getsockname()[1])


def test_a_taken_port_is_named_with_what_to_do(taken: int) -> None:
    with pytest.raises(AddressError, match=rf"127\.0\.0\.1:{taken} is in use.*--port"):
        listen("127.0.0.1", taken)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "a" * 80])
def test_a_host_that_is_not_here_is_named(host: str) -> None:
    with pytest.raises(AddressError, match=host):
        listen(host, 0)


def test_a_name_with_two_addresses_listens_on_those_there_are() -> None:
    sockets = listen("localhost", 0)
    for each in sockets:
        each.close()
    assert sockets


def test_the_server_says_so_without_an_engine(taken: int, tmp_path: Path) -> None:
    write_base_folder(tmp_path / "bases" / "tiny")
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"base": "tiny", "served_model_name": "tiny", "port": taken}))
    result = CliRunner().invoke(app, ["serve", str(config), "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert f"127.0.0.1:{taken} is in use" in result.stderr
    assert "Traceback" not in result.output


def test_a_server_that_cannot_be_built_gives_its_port_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> NoReturn:
        raise ConfigError("a package is missing")

    (free,) = listen("127.0.0.1", 0)
    port = free.getsockname()[1]
    free.close()
    monkeypatch.setattr("serve.build.build_server", broken)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a server sets what its engine wants
    write_base_folder(tmp_path / "bases" / "tiny")
    config = ServeConfig.model_validate({"base": "tiny", "served_model_name": "tiny", "port": port})
    with pytest.raises(ConfigError, match="a package is missing"):
        run(config, Home(tmp_path), KeyRing(None))
    listen("127.0.0.1", port)[0].close()
