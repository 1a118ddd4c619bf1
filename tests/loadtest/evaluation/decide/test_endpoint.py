"""Which server is asked."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config.home import Home
from loadtest.errors import TargetError
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.decide.endpoint import ServerChoice, asked_server, check_reachable
from tests.answering import BASE_NAME, AnsweringServer, answering_server


def choice(folder: Path, server: AnsweringServer, adapter: str | None, base: str = "tiny") -> ServerChoice:
    file = folder / "serve.yaml"
    port = urlsplit(server.url).port
    file.write_text(f"{{base: tiny, served_model_name: {BASE_NAME}, port: {port}}}")
    return ServerChoice(None, Home(folder), file, base, adapter, "none")


@pytest.mark.parametrize("adapter", [None, "medical@1"])
def test_a_running_server_with_the_models_is_asked(tmp_path: Path, adapter: str | None) -> None:
    said: list[str] = []
    with (
        answering_server(lambda body: "Hi", ("medical@1",)) as server,
        asked_server(choice(tmp_path, server, adapter), said.append) as url,
    ):
        assert url == server.url
    assert said == [f"asks the server at {server.url}"]


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "base"), [("medical@2", "tiny"), (None, "another")])
def test_a_running_server_without_them_is_left_alone(tmp_path: Path, adapter: str | None, base: str) -> None:
    said: list[str] = []
    with (
        answering_server(lambda body: "Hi", ("medical@1",)) as server,
        pytest.raises(TargetError, match="lorikeet base prepare"),  # the temporary server has no base
        asked_server(choice(tmp_path, server, adapter, base), said.append),
    ):
        raise AssertionError
    assert said[0].startswith("starts a temporary server")


def test_an_address_that_nobody_answers_is_one_line() -> None:
    with pytest.raises(EvaluationError, match=r"http://127.0.0.1:9/v1 does not answer.*lorikeet serve"):
        check_reachable("http://127.0.0.1:9/v1")
