"""A provider of OpenAI's chat completions on a loopback port, without what Lorikeet adds: headers and defaults."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS_OF_TURN, ANSWER_TOKENS = 10, 6


@dataclass
class Provider:
    """Attributes:
    url: Ends with /v1.
    say: The answer to a body.
    refused: Fields that it does not take.
    most: Answers until the account is closed; None: no end.
    asked: Bodies that were answered.
    keys: `Authorization` of all requests.
    """

    say: Callable[[dict[str, Any]], str]
    url: str = ""
    refused: tuple[str, ...] = ()
    most: int | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.most is not None and len(self.asked) >= self.most:
            return 403, _error("the account is closed", None)
        for name in self.refused:
            if name in body:
                return 400, _error(f"Unsupported parameter: {name!r}", name)
        self.asked.append(body)
        usage = {"prompt_tokens": PROMPT_TOKENS_OF_TURN * len(body["messages"]), "completion_tokens": ANSWER_TOKENS}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.say(body)}}
        common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return 200, common | {"choices": [choice], "usage": usage | {"total_tokens": sum(usage.values())}}


@contextmanager
def serving(provider: Provider) -> Iterator[Provider]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(404, _error("no such model", "model"))

        def do_POST(self) -> None:
            self._reply(*provider.answer(json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            provider.keys.add(self.headers["authorization"])
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        provider.url = f"http://127.0.0.1:{listening.server_port}/v1"
        try:
            yield provider
        finally:
            listening.shutdown()
            thread.join()


def _error(message: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
