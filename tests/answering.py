"""A server on a loopback port that answers as a test says, streamed or whole, as Lorikeet would."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BASE_NAME = "tiny"

Answer = Callable[[dict[str, Any]], str | tuple[int, str]]
"""A text for a request's body, or a status with the message of an error."""


@dataclass
class AnsweringServer:
    """Attributes:
    url: Ends with /v1.
    asked: Bodies of the questions, in order of arrival, without those that only learn the version.
    """

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def answering_server(answer: Answer, versions: tuple[str, ...] = (), digest: str = "abc") -> Iterator[AnsweringServer]:
    """Serve the base and versions such as `medical@1` until the block ends."""
    server = AnsweringServer("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            cards = [_card(BASE_NAME, None), *(_card(name, BASE_NAME) for name in versions)]
            name = self.path.rpartition("/models")[2].strip("/").replace("%40", "@")
            found = [card for card in cards if card["id"] == name]
            if not name:
                self._reply(200, {"object": "list", "data": cards})
            else:
                self._reply(*((200, found[0]) if found else (404, _error(f"no {name}"))))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if body.get("stream"):
                server.asked.append(body)
            said = answer(body) if body.get("stream") else "Hi"
            if isinstance(said, tuple):
                self._reply(said[0], _error(said[1]))
                return
            who = {"x-lorikeet-adapter": body["model"], "x-lorikeet-digest": digest}
            usage = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": 6, "total_tokens": 0}
            common = {"id": "c", "created": 1, "model": body["model"], "usage": usage}
            message, end = {"role": "assistant", "content": said}, {"index": 0, "finish_reason": "stop"}
            if body.get("stream"):
                chunk = common | {"object": "chat.completion.chunk", "choices": [end | {"delta": message}]}
                events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
                self._send(200, "text/event-stream", events.encode(), who)
            else:
                self._reply(200, common | {"object": "chat.completion", "choices": [end | {"message": message}]}, who)

        def _reply(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            self._send(status, "application/json", json.dumps(content).encode(), headers or {})

        def _send(self, status: int, kind: str, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with _Listening(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_port}/v1"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no fault."""


def _card(name: str, parent: str | None) -> dict[str, Any]:
    root = name if parent is None or "@" in name else f"{name}@1"
    card = {"id": name, "object": "model", "created": 5, "owned_by": "lorikeet"}
    return card | {"root": root, "parent": parent, "defaults": None}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
