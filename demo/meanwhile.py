"""A client that sends requests while an adapter trains, to show that serving continues without a restart."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

from openai import OpenAI, OpenAIError

from demo.figures import MeanwhileFigures
from demo.questions import Question, arguments_of

ASK_EVERY_S = 10.0
"""Seldom enough to cost the training next to nothing."""
GIVE_UP_S = 5.0
"""An interrupted block waits so long for a request in flight."""


@contextmanager
def asked_meanwhile(
    url: str,
    questions: Sequence[Question],
    is_ready: Callable[[], bool],
    now_s: Callable[[], float],
    asked: list[MeanwhileFigures],
    every_s: float = ASK_EVERY_S,
) -> Iterator[None]:
    """Send a question periodically until the block ends, once the server is ready.

    Args:
        asked: Receives the result of each request.
    """
    is_over = threading.Event()

    def ask_on() -> None:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            for question in cycle(questions):
                if is_ready():
                    asked.append(_ask(client, question, now_s))
                if is_over.wait(every_s):
                    return

    thread = threading.Thread(target=ask_on, daemon=True)
    thread.start()
    try:
        yield
        is_over.set()
        thread.join()
    finally:
        is_over.set()
        thread.join(GIVE_UP_S)


def _ask(client: OpenAI, question: Question, now_s: Callable[[], float]) -> MeanwhileFigures:
    at_s = now_s()
    try:
        client.chat.completions.create(**arguments_of(question))
        is_ok = True
    except OpenAIError:
        is_ok = False
    return MeanwhileFigures(model=question.model, at_s=round(at_s, 1), seconds=round(now_s() - at_s, 3), is_ok=is_ok)
