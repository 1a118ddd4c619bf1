"""Clients of a judge: any OpenAI-compatible endpoint over HTTP, or this server's own base model.

JudgeCallError (RuntimeError)    no answer; `outcome` is the metric's word for why, and most are worth another try
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

import httpx

from quality.judge import JudgeTask
from serve.engine.protocol import BACKGROUND_PRIORITY, Engine
from serve.errors import NotReadyError, ServeError
from serve.records import Caller

CallOutcome = Literal["ok", "invalid", "timeout", "throttled", "unreachable", "error", "refused"]

MAX_REPLY_TOKENS = 300
_CHARS_PER_TOKEN = 4  # about, of English; only where the endpoint does not say what a reply cost


class JudgeCallError(RuntimeError):
    """No answer from the judge.

    Args:
        retry_after_s: What it asks for, where it does.
    """

    def __init__(self, message: str, outcome: CallOutcome, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after_s = retry_after_s

    @property
    def is_worth_a_retry(self) -> bool:
        return self.outcome != "refused"

    @property
    def is_free(self) -> bool:
        """Whether the judge certainly did no work."""
        return self.outcome in ("throttled", "unreachable", "refused")


@dataclass(frozen=True)
class JudgeReply:
    text: str
    num_tokens: int
    """Of prompt and answer."""


class Judge(Protocol):
    """A model that can be asked."""

    @property
    def name(self) -> str:
        """The name stored with its grades."""
        ...

    @property
    def is_ready(self) -> bool: ...

    async def ask(self, task: JudgeTask, temperature: float = 0.0) -> JudgeReply:
        """Ask once.

        Raises:
            JudgeCallError: There is no answer.
        """
        ...


class HttpJudge:
    """A model behind `POST {base URL}/chat/completions`; `client` knows the base URL and the key."""

    is_ready = True

    def __init__(self, client: httpx.AsyncClient, model: str, clock: Callable[[], float] = time.time) -> None:
        self.name = model
        self._client = client
        self._clock = clock

    async def ask(self, task: JudgeTask, temperature: float = 0.0) -> JudgeReply:
        try:
            body = _body(task, self.name, temperature) | {"response_format": task.response_format}
            response = await self._client.post("chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise JudgeCallError(f"cannot be reached: {_words(error)}", "unreachable") from error
        except httpx.TimeoutException as error:
            raise JudgeCallError(f"did not answer in time: {_words(error)}", "timeout") from error
        except httpx.HTTPError as error:
            raise JudgeCallError(f"closed the connection: {_words(error)}", "error") from error
        if response.status_code != 200:
            raise _refusal(response, self._clock())
        try:
            return read_reply(response.json(), task)
        except ValueError as error:
            raise JudgeCallError("answered something other than JSON; is the URL right?", "error") from error


class EngineJudge:
    """This server's base model, asked past the queue of clients, at the lowest priority."""

    def __init__(self, engine: Engine, base_name: str) -> None:
        self.name = base_name
        self._engine = engine

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    async def ask(self, task: JudgeTask, temperature: float = 0.0) -> JudgeReply:
        held_to = {"structured_outputs": {"regex": task.reply_pattern}}  # vLLM's own field
        body = _body(task, self.name, temperature) | held_to | {"priority": BACKGROUND_PRIORITY}
        try:
            answer = await self._engine.answer("chat/completions", body, Caller("monitor"))
        except NotReadyError as error:
            raise JudgeCallError(str(error), "unreachable") from error
        except ServeError as error:
            raise JudgeCallError(str(error), "refused" if error.status < 500 else "error") from error
        assert isinstance(answer.body, dict)  # no stream was asked for
        return read_reply(answer.body, task)


def http_judge_client(
    url: str, api_key: str | None, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client of an OpenAI-compatible base URL, such as http://127.0.0.1:8001/v1."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(
        base_url=url.rstrip("/") + "/", headers=headers, timeout=timeout_s, transport=transport, follow_redirects=False
    )


def most_tokens(task: JudgeTask) -> int:
    """About how many tokens a task may cost, prompt and answer; known before it is sent."""
    return sum(len(message["content"]) for message in task.messages) // _CHARS_PER_TOKEN + MAX_REPLY_TOKENS


def read_reply(body: Any, task: JudgeTask) -> JudgeReply:
    """The text of a chat completion.

    Raises:
        JudgeCallError: The body has none.
    """
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise JudgeCallError("answered without text; is this the URL of an OpenAI-compatible server?", "error")
    usage = body.get("usage")
    num_tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return JudgeReply(text, num_tokens if isinstance(num_tokens, int) and num_tokens > 0 else most_tokens(task))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _body(task: JudgeTask, model: str, temperature: float) -> dict[str, Any]:
    return {
        "model": model,
        "messages": list(task.messages),
        "temperature": temperature,
        "max_tokens": MAX_REPLY_TOKENS,
    }


def _refusal(response: httpx.Response, now_s: float) -> JudgeCallError:
    """The error of an HTTP status; 408, 429 and 5xx may pass."""
    status = response.status_code
    outcome: CallOutcome = (
        "throttled" if status == 429 else "timeout" if status == 408 else "error" if status >= 500 else "refused"
    )
    return JudgeCallError(
        f"answered {status}: {_message_of(response)}", outcome, retry_after_s(response.headers, now_s)
    )


def _message_of(response: httpx.Response) -> str:
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return str(response.json()["error"]["message"])[:200]
    return repr(response.text[:200])


def retry_after_s(headers: httpx.Headers, now_s: float) -> float | None:
    """Seconds that `Retry-After` asks for, given as seconds or as a date; None without it, or where it is neither."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s)
