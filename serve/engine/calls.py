"""One call of `VllmEngine.answer`: its caller and its result, and how code inside vLLM finds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from quality.samples.records import Turn
from serve.engine.generations import OpenGenerations
from serve.engine.grammars import Grammar
from serve.errors import ServeError
from serve.records import Caller, RequestResult


@dataclass
class EngineCall:
    """State of one call, from `answer` to the end of its stream.

    `messages` is the conversation, if it is one of text; `failure` is why the engine ended a generation, which vLLM's
    streams report in their own words; `grammars` and `generations` are those that vLLM's serving class has asked for.
    """

    caller: Caller
    result: RequestResult
    messages: tuple[Turn, ...] = ()
    failure: ServeError | None = None
    grammars: list[Grammar] = field(default_factory=list)
    generations: OpenGenerations = field(default_factory=OpenGenerations)

    @contextmanager
    def as_current(self) -> Iterator[None]:
        """Generations that this task begins in the block belong to this call."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[EngineCall | None] = ContextVar("current_call", default=None)
"""vLLM's serving classes (0.32) call `AsyncLLM.generate` with a request id that they make up, and nothing else of ours.

It leads from `answer`, or from the reader of a stream, to `generate`, and nowhere else reads or sets it.
"""


def current_call() -> EngineCall:
    """The call that a generation is begun for; a new one where vLLM begins it by itself."""
    return _current.get() or EngineCall(Caller("client"), RequestResult())
