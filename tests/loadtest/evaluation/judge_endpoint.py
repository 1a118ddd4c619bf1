"""A scripted judge behind an OpenAI client, and items for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from loadtest.evaluation.judging import JudgePlace
from quality.metrics.item import Item

Reply = str | httpx.Response


def item(number: int, answer: str, expected: str = "right") -> Item:
    return Item(id=str(number), question=f"question {number}", expected=expected, answer=answer)


def grade(number: int) -> str:
    return json.dumps({"reason": "So.", "grade": number})


def better(word: str) -> str:
    return json.dumps({"reason": "So.", "better": word})


class ScriptedJudge:
    """Answers each request by `reply`, which gets the text of the task and the request's body."""

    def __init__(self, reply: Callable[[str, dict[str, Any]], Reply]) -> None:
        self._reply = reply
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            card = {"id": "tiny", "object": "model", "created": 5, "owned_by": "x", "parent": None}
            whole = {"object": "list", "data": [card]}
            return httpx.Response(200, json=whole if request.url.path == "/v1/models" else card)
        body = json.loads(request.content)
        self.bodies.append(body)
        found = self._reply(body["messages"][-1]["content"], body)
        if isinstance(found, httpx.Response):
            return found
        message = {"role": "assistant", "content": found}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return httpx.Response(
            200, json={"id": "c", "object": "chat.completion", "created": 1, "model": "tiny", "choices": choices}
        )

    def place(self, folder: Path, concurrency: int = 2) -> JudgePlace:
        """As the server under evaluation."""
        http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(self))
        server = AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http_client)
        return JudgePlace(server, folder, {}, concurrency)


def shown_between(text: str, name: str) -> str:
    """The fenced text of a task by its name, as ANSWER."""
    _, _, rest = text.partition(f"----- {name} ")
    body: str = rest.partition("-----\n")[2].partition("\n-----")[0]
    return body
