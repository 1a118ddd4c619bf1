"""Background requests, as those of batches, give way in the engine to those that a client waits for.

vLLM's scheduler (0.32) starts requests by priority, but what runs goes on: a client's prompt would wait for a step full
of a batch's prompts, and then be computed in one step with the tokens of all that the batch has running.
"""

import time
from collections.abc import Callable
from typing import Any

from serve.engine.protocol import BACKGROUND_PRIORITY

LONGEST_STEP_S = 0.03
"""What background requests should make of a step at most while clients are about: a client's prompt waits for it."""
LONGEST_STEP_ALONE_S = 0.25
"""The same while no client is about: the first one that comes waits for it."""
ABOUT_S = 5.0
"""Clients are about for so long after the last step with a request of theirs."""
MOST_STEPS_OUT = 50
"""Then background requests may run a step: they may hold the cache blocks that a client's request waits for."""

_FEWEST_TOKENS, _FEWEST_TOKENS_ALONE = 8, 128
_LEAST_GROWTH = 8


class StepTokens:
    """How many tokens of background requests keep a step short: learnt from the steps that had as many.

    Args:
        num_tokens: To begin with.
        fewest: Not less than these, however long their steps.
    """

    def __init__(self, longest_s: float, num_tokens: int, fewest: int) -> None:
        self.num_tokens = num_tokens
        self._longest_s = longest_s
        self._fewest = fewest
        self._filled_s: float | None = None

    def begins(self, num_tokens: int, now_s: float) -> None:
        """A step begins with so many tokens of background requests."""
        self._filled_s = now_s if num_tokens >= self.num_tokens else None

    def ended(self, now_s: float) -> None:
        """The last step has ended."""
        if self._filled_s is None:
            return
        is_long = now_s - self._filled_s > self._longest_s
        more = self.num_tokens + max(_LEAST_GROWTH, self.num_tokens // 8)
        self.num_tokens = max(self._fewest, self.num_tokens // 2 if is_long else more)
        self._filled_s = None


class BackgroundShare:
    """How much of a step background requests get. Time comes in as an argument, so the same calls decide the same.

    While a client waits for its first token, they sit out. While clients are about, they get as many tokens of a step
    as keep it very short; else as many that the first client that comes does not wait for long.
    """

    def __init__(self) -> None:
        self._beside = StepTokens(LONGEST_STEP_S, 4 * _FEWEST_TOKENS, _FEWEST_TOKENS)
        self._alone = StepTokens(LONGEST_STEP_ALONE_S, 2 * _FEWEST_TOKENS_ALONE, _FEWEST_TOKENS_ALONE)
        self._current = self._alone
        self._client_seen_s = float("-inf")
        self._num_steps_out = 0

    def client_seen(self, now_s: float) -> None:
        self._client_seen_s = now_s

    def tokens(self, *, is_first_token_due: bool, now_s: float) -> int:
        """Tokens that they may have in the next step; 0: they sit it out."""
        self._current.ended(now_s)
        self._current = self._alone if now_s - self._client_seen_s > ABOUT_S else self._beside
        self._num_steps_out = self._num_steps_out + 1 if is_first_token_due else 0
        if 0 < self._num_steps_out <= MOST_STEPS_OUT:
            return 0
        self._num_steps_out = 0
        return self._current.num_tokens

    def scheduled(self, num_tokens: int, now_s: float) -> None:
        """The step that begins has so many of theirs."""
        self._current.begins(num_tokens, now_s)


def schedule_with_way(
    scheduler: Any, share: BackgroundShare, schedule: Callable[[], Any], can_start: Callable[[Any], bool] | None = None
) -> Any:
    """Schedule vLLM's next step, with what `share` allows to background requests.

    Args:
        schedule: vLLM's own, without arguments.
        can_start: Whether there is a slot for a request's adapter. For one that waits for theirs, background requests
            do not sit out. Default: there always is.
    """
    requests, now_s = (*scheduler.running, *scheduler.waiting), time.perf_counter()
    clients = [request for request in requests if not _is_background(request)]
    if clients:
        share.client_seen(now_s)
    if len(clients) == len(requests):
        return schedule()
    is_due = any(request.num_output_tokens == 0 and (not can_start or can_start(request)) for request in clients)
    num_tokens = share.tokens(is_first_token_due=is_due, now_s=now_s)
    scheduler.running.sort(key=_is_background)  # what is left of a step is theirs, whoever came first
    most_tokens, most_requests = scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs
    if num_tokens == 0:
        _sit_out(scheduler)
        num_waiting = sum(not _is_background(request) for request in scheduler.waiting)
        scheduler.max_num_active_reqs = min(most_requests, len(scheduler.running) + num_waiting)
    else:
        scheduler.max_num_scheduled_tokens = min(most_tokens, num_tokens + sum(map(_num_due, clients)))
    try:
        step = schedule()
    finally:
        scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs = most_tokens, most_requests
    share.scheduled(_num_background(scheduler, step.num_scheduled_tokens), time.perf_counter())
    return step


def _is_background(request: Any) -> bool:
    is_background: bool = request.priority >= BACKGROUND_PRIORITY
    return is_background


def _num_due(request: Any) -> int:
    """Tokens of a request that the next step could compute."""
    num_due: int = request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    return max(1, num_due)


def _num_background(scheduler: Any, num_tokens: dict[str, int]) -> int:
    return sum(num for name, num in num_tokens.items() if _is_background(scheduler.requests[name]))


def _sit_out(scheduler: Any) -> None:
    for request in filter(_is_background, scheduler.running):  # the scheduler counts its steps before it looks
        request.next_decode_eligible_step = max(request.next_decode_eligible_step, scheduler.current_step + 2)
