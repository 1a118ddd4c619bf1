"""Answers are timed, saved by request, and asked with fewer examples where the context is too short."""

from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from loadtest.evaluate import EvaluationError
from loadtest.evaluation.decide.timed import TimedAnswer, ask_timed, identify
from tests.answering import BASE_NAME, Answer, AnsweringServer, answering_server

pytestmark = pytest.mark.anyio


def request(number: int, num_examples: int = 0) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"example {n}"} for n in range(num_examples)]
    return {"model": BASE_NAME, "messages": [*turns, {"role": "user", "content": f"question {number}"}]}


def echo(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


QUESTIONS = [[request(number, count) for count in (2, 1, 0)] for number in range(6)]


async def asked(server: AnsweringServer, folder: Path) -> list[TimedAnswer]:
    async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        model = await identify(client, BASE_NAME)
        return await ask_timed(client, model, QUESTIONS, folder, concurrency=3)


async def test_answers_come_in_order_with_times_and_tokens(tmp_path: Path) -> None:
    with answering_server(echo) as server:
        answers = await asked(server, tmp_path)
    assert [answer.text for answer in answers] == [f"question {n}" for n in range(6)]
    assert all(0 < answer.ttft_s <= answer.e2e_s for answer in answers)
    assert {(answer.num_prompt_tokens, answer.num_answer_tokens, answer.num_left_out) for answer in answers} == {
        (30, 6, 0)
    }


@pytest.mark.slow
async def test_saved_answers_are_not_asked_again(tmp_path: Path) -> None:
    with answering_server(echo) as server:
        first = await asked(server, tmp_path)
        (file,) = tmp_path.iterdir()
        file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[:4]) + b'\n{"id": "ha')  # as a killed process leaves
        again = await asked(server, tmp_path)
        assert [answer.text for answer in again] == [answer.text for answer in first]
        assert len(server.asked) == 8
        await asked(server, tmp_path)
        assert len(server.asked) == 8


@pytest.mark.slow
async def test_another_version_is_asked_afresh(tmp_path: Path) -> None:
    for digest in ("abc", "def"):
        with answering_server(echo, digest=digest) as server:
            await asked(server, tmp_path)
            assert len(server.asked) == 6


@pytest.mark.slow
async def test_fewer_examples_are_sent_where_the_context_is_short(tmp_path: Path) -> None:
    def short(body: dict[str, Any]) -> str | tuple[int, str]:
        return echo(body) if len(body["messages"]) < 3 else (400, "maximum context length")

    with answering_server(short) as server:
        answers = await asked(server, tmp_path)
    assert {answer.num_left_out for answer in answers} == {1}


@pytest.mark.slow
async def test_a_way_does_not_find_its_prompts_in_the_cache(tmp_path: Path) -> None:
    with answering_server(echo) as server:
        await asked(server, tmp_path / "one")
        await asked(server, tmp_path / "two")
        salts = {body["cache_salt"] for body in server.asked}
    assert len(salts) == 2


@pytest.mark.parametrize(("answer", "named"), [
    (lambda body: (400, "no schemas here"), "no schemas here"),
    (lambda body: (503, "busy"), "busy"),
])  # fmt: skip
async def test_a_refused_request_is_named(tmp_path: Path, answer: Answer, named: str) -> None:
    with answering_server(answer) as server, pytest.raises(EvaluationError, match=f"'tiny': .*{named}"):
        await asked(server, tmp_path)


async def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="answers are saved"):
        await asked(AnsweringServer("http://127.0.0.1:9/v1"), tmp_path)
