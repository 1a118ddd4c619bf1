"""Graders as rewards; a model is asked over HTTP, at a server in this process."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from config.dataset import Message
from config.objective import GrpoObjective
from train.errors import DataError, RecipeError
from train.objectives.graders import check_items, grader_score
from train.objectives.rewards import RewardedPrompt

PROMPT = (Message(role="user", content="Which colour?"),)
QUESTION = RewardedPrompt(PROMPT, None, {"reference_answer": "red"})


def string_check(operation: str, **fields: Any) -> dict[str, Any]:
    texts = {"input": "{{ sample.output_text }}", "reference": "{{ item.reference_answer }}"}
    return {"type": "string_check", "name": operation, "operation": operation} | texts | fields


def scores(grader: dict[str, Any], *answers: str, question: RewardedPrompt = QUESTION, **fields: Any) -> list[float]:
    score = grader_score(GrpoObjective.model_validate({"grader": grader} | fields))
    assert score is not None
    return score([question] * len(answers), answers)


class Judge(ThreadingHTTPServer):
    """Answers chat completions with a fixed reply, and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = '{"result": 0.75}'
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body | {"key": self.headers["Authorization"]})
        message = {"role": "assistant", "content": self.server.reply}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "base"}
        answer |= {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        status, content = (404, b"{}") if body["model"] == "missing" else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def score_model(**fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "{{ item.reference_answer }}? {{ sample.output_text }}"}]
    return {"type": "score_model", "name": "judge", "model": "base", "input": turns} | fields


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("eq", [1, 0, 0, 0]), ("ne", [0, 1, 1, 1]), ("like", [1, 1, 0, 0]), ("ilike", [1, 1, 1, 0])],
)
def test_texts_are_compared(operation: str, expected: list[float]) -> None:
    assert scores(string_check(operation), "red", "dark red", "RED", "blue") == expected


def test_an_answer_without_the_asked_json_gets_nothing() -> None:
    grader = string_check("ne", input="{{ sample.output_json.colour }}")
    assert scores(grader, '{"colour": "blue"}', "blue", "{}") == [1.0, 0.0, 0.0]


def test_a_multi_grader_computes_its_formula() -> None:
    near = {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match"}
    near |= {"input": "{{ sample.output_text }}", "reference": "{{ item.reference_answer }}"}
    graders = {"right": string_check("eq"), "near": near}
    grader = {"type": "multi", "name": "all", "graders": graders, "calculate_output": "(right + near) / 2"}
    assert scores(grader, "red", "rex", "?") == pytest.approx([1.0, 1 / 3, 0.0])


def test_the_prompt_and_an_expected_answer_can_be_named() -> None:
    grader = string_check("eq", input="{{ item.messages[0].content }} {{ item.reference_answer }}", reference="?")
    question = RewardedPrompt(PROMPT, "red")
    assert scores(grader | {"reference": "Which colour? red"}, "any", question=question) == [1.0]


def test_a_models_number_is_the_score(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    grader = score_model(sampling_params={"temperature": 0.0, "seed": 3})
    assert scores(grader, "dark red", grader_url=judge.url, grader_api_key_env="THE_KEY") == [0.75]
    [request] = judge.requests
    assert request["messages"] == [{"role": "user", "content": "red? dark red"}]
    assert (request["temperature"], request["seed"], request["key"]) == (0.0, 3, "Bearer secret")


@pytest.mark.parametrize(
    ("reply", "score"), [('{"result": 9}', 2.0), ('{"result": -9}', 0.5), ("good", 0.5), ('{"result": "x"}', 0.5)]
)
def test_a_models_number_stays_within_the_range(judge: Judge, reply: str, score: float) -> None:
    judge.reply = reply
    assert scores(score_model(range=[0.5, 2]), "red", grader_url=judge.url) == [score]


def test_a_model_that_is_not_served_is_named(judge: Judge) -> None:
    with pytest.raises(RecipeError, match=r"'judge' asks the model 'missing' at http://127\.0\.0\.1"):
        scores(score_model(model="missing"), "red", grader_url=judge.url)


def test_a_row_without_the_graders_field_is_named() -> None:
    objective = GrpoObjective.model_validate({"grader": string_check("eq")})
    assert objective.grader is not None
    check_items(objective.grader, [QUESTION])
    with pytest.raises(DataError, match=r"uses item\.reference_answer, but row 2 has other only"):
        check_items(objective.grader, [QUESTION, RewardedPrompt(PROMPT, None, {"other": 1})])
