"""Host names and origins in one form, whatever settings and browsers make of them."""

import pytest

from config.hosts import is_loopback, is_same_host, normal_host, normal_origin, split_authority
from config.serve import ServeConfig


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("localhost", ("localhost", "")),
        ("LocalHost.:8000", ("localhost", "8000")),
        ("[::1]:8000", ("::1", "8000")),
        ("[0:0:0:0:0:0:0:1]", ("::1", "")),
        ("gpu_box.corp.example:", ("gpu_box.corp.example", "")),
    ],
)
def test_a_host_header_has_one_form(header: str, parts: tuple[str, str]) -> None:
    assert split_authority(header) == parts


@pytest.mark.parametrize(
    "header",
    [
        "",
        ":8000",
        "::1",
        "::1:8000",
        "[::1",
        "[127.0.0.1]",
        "a b",
        "localhost..",
        "127.0.0.1@evil.example",
        "a/b",
        "a:b",
    ],
)
def test_what_is_no_host_header_is_none(header: str) -> None:
    assert split_authority(header) is None


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_this_machine_has_several_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "192.168.0.9", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "2130706433"],
)
def test_another_machine_is_not_this_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("origin", "header", "is_same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LOCALHOST.:8000", "localhost:8000", True),
        ("https://llm.example", "llm.example", True),
        ("https://llm.example", "llm.example:443", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("app://localhost:8000", "localhost:8000", False),
        ("http://evil.example", "localhost:8000", False),
    ],
)
def test_an_origin_is_the_servers_own_by_host_and_port(origin: str, header: str, is_same: bool) -> None:
    parts, host = normal_origin(origin), split_authority(header)
    assert parts is not None
    assert host is not None
    assert is_same_host(parts, host) is is_same


@pytest.mark.parametrize(
    "origin", ["null", "", "*", "evil.example", "http://", "http://a b", "http://a/path", "http://a@b"]
)
def test_what_is_no_origin_is_none(origin: str) -> None:
    assert normal_origin(origin) is None


@pytest.mark.parametrize("host", ["http://llm.example", "llm.example:8000", "", "a b", "*.example"])
def test_an_allowed_host_has_neither_scheme_nor_port(host: str) -> None:
    with pytest.raises(ValueError, match="without scheme and port"):
        ServeConfig(base="tiny", allowed_hosts=(host,))


@pytest.mark.parametrize("origin", ["*", "null", "app.example", "https://app.example/", "https://*.example"])
def test_an_allowed_origin_is_one_that_browsers_send(origin: str) -> None:
    with pytest.raises(ValueError, match="must be an origin as browsers send it"):
        ServeConfig(base="tiny", cors_origins=(origin,))


def test_an_allowed_host_takes_its_normal_form() -> None:
    assert ServeConfig(base="tiny", allowed_hosts=("LLM.Example.", "[::2]", "*")).allowed_hosts == (
        "llm.example",
        "::2",
        "*",
    )
    assert normal_host("LLM.Example.") == "llm.example"
