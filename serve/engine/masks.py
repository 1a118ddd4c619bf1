"""A request whose grammar costs too much in the engine is ended, and holds up nobody for long.

vLLM (0.32) fills the masks of all requests on the thread that runs the engine. A call into xgrammar cannot be ended.
So it is made in a thread of its own, which is left behind where it takes too long: its request gets no mask any more,
and an error at the end of the step. Each request also has an allowance of processor time, which grows with its tokens.
"""

import threading
import time
from collections.abc import Callable, Container, Iterable
from typing import Any

from serve.engine.replace import Replacement, install

GRAMMAR_TOO_COSTLY = "lorikeet: the grammar costs too much"
"""The `stop_reason` of an answer that was ended for that; its `finish_reason` is `error`."""

SLOWEST_S = 1.0
"""Longest call for one token, seconds by the clock."""
ALLOWANCE_S = 1.0
PER_TOKEN_S = 0.01
"""Processor time that a request's grammar may take, seconds: at first, and more for each token."""

_LOOK_S = 0.1
_FEW = 64


def end_costly_grammars() -> None:
    """Replace vLLM's methods; done twice, it does no more."""
    from vllm.v1.structured_output import StructuredOutputManager

    install(
        Replacement(StructuredOutputManager, "grammar_bitmask", _grammar_bitmask),
        Replacement(StructuredOutputManager, "_fill_bitmasks", _fill_bitmasks),
        Replacement(StructuredOutputManager, "_async_submit_fill_bitmask", _submit_fill),
        Replacement(StructuredOutputManager, "accept_tokens", _accept_tokens),
    )


class Ended:
    """In the place of a grammar that cost too much: it allows everything, until the step ends its request."""

    def is_terminated(self) -> bool:
        return True

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        return tokens

    def fill_bitmask(self, bitmask: Any, index: int) -> None:
        raise AssertionError("A grammar that has terminated fills no mask.")

    def rollback(self, num_tokens: int) -> None:
        """No action is needed."""


class Allowances:
    """Processor time that is left to each request's grammar."""

    def __init__(self) -> None:
        self._left_s: dict[str, float] = {}

    def charge(self, request_id: str, seconds: float) -> bool:
        """Whether it is used up."""
        left_s = min(ALLOWANCE_S, self._left_s.get(request_id, ALLOWANCE_S) + PER_TOKEN_S) - seconds
        self._left_s[request_id] = left_s
        return left_s < 0

    def keep(self, live: Container[str], num_live: int) -> None:
        """Forget requests that have ended, now and then."""
        if len(self._left_s) > 2 * num_live + _FEW:
            self._left_s = {each: left_s for each, left_s in self._left_s.items() if each in live}


class Run:
    """One attempt to fill a step's masks, in a thread of its own."""

    def __init__(self, request_of: dict[int, str]) -> None:
        self.request_of = request_of
        """By `id` of its grammar."""
        self.bitmask: Any = None
        self.is_abandoned = False
        self.took_s: dict[str, float] = {}
        self._since: dict[int, tuple[str, float]] = {}  # by thread: the request that it works for, and from when

    def fill(self, grammar: Any, index: int) -> None:
        """One row; nothing in a run that was left behind."""
        if self.is_abandoned:
            return
        request_id, thread = self.request_of[id(grammar)], threading.get_ident()
        self._since[thread] = request_id, time.monotonic()
        start_s = time.thread_time()
        grammar.fill_bitmask(self.bitmask, index)
        self.took_s[request_id] = self.took_s.get(request_id, 0.0) + time.thread_time() - start_s
        self._since.pop(thread, None)

    def stuck(self) -> list[str]:
        """The requests that one call has worked for too long."""
        now_s = time.monotonic()
        return [request_id for request_id, since_s in tuple(self._since.values()) if now_s - since_s > SLOWEST_S]


class GrammarGuard:
    """What is known of the grammars of one engine."""

    def __init__(self) -> None:
        self.allowances = Allowances()
        self.ended: set[str] = set()
        self.local = threading.local()

    def run(self, work: Callable[[], Any], run: Run) -> tuple[bool, Any]:
        """Do the work in a thread; whether it was left behind because a grammar is stuck, and its result."""
        done = threading.Event()
        result: list[tuple[Any, BaseException | None]] = []

        def target() -> None:
            self.local.run = run
            try:
                result.append((work(), None))
            except BaseException as error:  # handed on to the engine's own thread
                result.append((None, error))
            done.set()

        threading.Thread(target=target, name="lorikeet-masks", daemon=True).start()
        while not done.wait(_LOOK_S):
            if run.stuck():
                run.is_abandoned = True
                return True, None
        value, error = result[0]
        if error is not None:
            raise error
        return False, value


def _guard(manager: Any) -> GrammarGuard:
    guard: GrammarGuard = manager.__dict__.setdefault("lorikeet_guard", GrammarGuard())
    return guard


def _grammar_bitmask(stock: Any, manager: Any, requests: Any, ids: list[str], drafts: Any) -> Any:
    if not ids:
        return stock(manager, requests, ids, drafts)
    guard = _guard(manager)
    guard.allowances.keep(requests, len(requests))
    while True:
        run = Run({id(requests[each].structured_output_request.grammar): each for each in ids})
        is_abandoned, masks = guard.run(lambda: stock(manager, requests, ids, drafts), run)
        stuck = set(run.stuck()) if is_abandoned else set()
        for request_id in stuck | {each for each, s in run.took_s.items() if guard.allowances.charge(each, s)}:
            _end(guard, requests[request_id])
        if not is_abandoned:
            return masks
        manager._grammar_bitmask = None  # the thread that was left behind may still write into the old one


def _end(guard: GrammarGuard, request: Any) -> None:
    request.structured_output_request.grammar = Ended()
    guard.ended.add(request.request_id)


def _fill_bitmasks(stock: Any, manager: Any, batch: Iterable[tuple[Any, int, bool]]) -> None:
    """As vLLM's own, each grammar's row by itself."""
    run: Run | None = getattr(_guard(manager).local, "run", None)
    if run is None:
        stock(manager, batch)
        return
    if run.bitmask is None:
        run.bitmask = manager._grammar_bitmask
    for grammar, index, applies in batch:
        if applies and not grammar.is_terminated():
            run.fill(grammar, index)
        elif not run.is_abandoned:
            run.bitmask[index].fill_(manager._full_mask)


def _submit_fill(stock: Any, manager: Any, batch: Any) -> Any:
    """vLLM's own threads, which it has for large batches, work for the run whose thread asks them."""
    local = _guard(manager).local
    run = local.run

    def work() -> None:
        local.run = run
        manager._fill_bitmasks(batch)

    return manager.executor_for_fillmask.submit(work)


def _accept_tokens(stock: Any, manager: Any, request: Any, new_token_ids: list[int]) -> Any:
    if not request.use_structured_output:
        return stock(manager, request, new_token_ids)
    start_s = time.thread_time()
    is_accepted = stock(manager, request, new_token_ids)
    guard = _guard(manager)
    if guard.allowances.charge(request.request_id, time.thread_time() - start_s + PER_TOKEN_S):
        _end(guard, request)
    return is_accepted


def withdraw_costly(scheduler: Any, model_output: Any) -> set[str]:
    """The requests whose grammars cost too much: vLLM's scheduler will end them with an error."""
    guard = _guard(scheduler.structured_output_manager)
    ended, guard.ended = {each for each in guard.ended if each in scheduler.requests}, set()
    for request_id in ended:
        _withdraw(model_output, request_id)
    # vLLM's own list of requests that cannot go on; it is worked off at the end of each step.
    scheduler.grammar_compile_error_reqs |= ended
    return ended


def _withdraw(model_output: Any, request_id: str) -> None:
    """Take back the token that was drawn without a mask: it may end the answer."""
    place = model_output.req_id_to_index.get(request_id)
    if place is not None and model_output.sampled_token_ids:
        model_output.sampled_token_ids[place] = []
