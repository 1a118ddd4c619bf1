"""What the demo asks while an adapter trains, when the training is interrupted."""

import socket

import pytest

import demo.meanwhile
from config.dataset import DatasetRow, conversation
from config.domain import ChatConfig
from demo.figures import MeanwhileFigures
from demo.meanwhile import asked_meanwhile
from demo.questions import Question


def interrupt_in_flight(server: socket.socket, accepted: list[socket.socket], asked: list[MeanwhileFigures]) -> None:
    """An error while a request is never answered."""
    row = DatasetRow(messages=conversation(ChatConfig(system="?"), "a", "b"), input="a", output="b", in_scope=True)
    question = Question("tiny", row, is_streamed=False)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with asked_meanwhile(url, [question], lambda: True, lambda: 0.0, asked):
        accepted.append(server.accept()[0])
        raise KeyboardInterrupt


def test_an_interruption_does_not_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.meanwhile, "GIVE_UP_S", 0.05)
    accepted: list[socket.socket] = []
    asked: list[MeanwhileFigures] = []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(KeyboardInterrupt):
        interrupt_in_flight(server, accepted, asked)
    assert asked == []
    accepted[0].close()
