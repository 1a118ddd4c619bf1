"""Background requests give way in a step to those that a client waits for, and do not starve."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine.make_way import (
    ABOUT_S,
    LONGEST_STEP_ALONE_S,
    LONGEST_STEP_S,
    MOST_STEPS_OUT,
    BackgroundShare,
    schedule_with_way,
)
from serve.engine.protocol import BACKGROUND_PRIORITY

STEP_TOKENS = 2048


def request(name: str, *, priority: int = 0, num_prompt: int = 100, num_done: int = 0) -> Any:
    """A request with `num_done` tokens of its answer; 0: its prompt is not computed yet."""
    return SimpleNamespace(
        request_id=name,
        priority=priority,
        num_output_tokens=num_done,
        num_tokens_with_spec=num_prompt + num_done,
        num_output_placeholders=0,
        num_computed_tokens=num_prompt + num_done - 1 if num_done else 0,
        next_decode_eligible_step=0,
    )


def line(name: str, **more: Any) -> Any:
    return request(name, priority=BACKGROUND_PRIORITY, **more)


class Steps:
    """What of vLLM's scheduler decides who is in a step: running ones first, then waiting ones, within the bounds."""

    def __init__(self, running: Sequence[Any] = (), waiting: Sequence[Any] = ()) -> None:
        self.running, self.waiting = list(running), sorted(waiting, key=lambda each: each.priority)
        self.requests = {each.request_id: each for each in (*running, *waiting)}
        self.max_num_scheduled_tokens, self.max_num_active_reqs = STEP_TOKENS, 32
        self.current_step = 0
        self.share = BackgroundShare()

    def step(self) -> dict[str, int]:
        """Tokens of the next step, by request."""
        tokens: dict[str, int] = schedule_with_way(self, self.share, self._schedule).num_scheduled_tokens
        return tokens

    def _schedule(self) -> Any:
        self.current_step += 1
        left, tokens = self.max_num_scheduled_tokens, dict[str, int]()
        while self.waiting and len(self.running) < self.max_num_active_reqs:
            self.running.append(self.waiting.pop(0))
        for each in self.running:
            due = min(left, each.num_tokens_with_spec - each.num_computed_tokens)
            if due and each.next_decode_eligible_step <= self.current_step:
                tokens[each.request_id] = due
                left -= due
        return SimpleNamespace(num_scheduled_tokens=tokens)


def test_a_clients_prompt_is_computed_without_a_batch() -> None:
    steps = Steps([line("a", num_done=3), line("b", num_done=3)], [request("client"), line("c")])
    assert steps.step() == {"client": 100}
    assert [each.request_id for each in steps.waiting] == ["c"]
    assert steps.max_num_active_reqs == 32


def test_a_batch_goes_on_beside_a_clients_later_tokens() -> None:
    steps = Steps([line("a", num_done=3), request("client", num_done=1)])
    assert steps.step() == {"client": 1, "a": 1}


def test_prompts_of_a_batch_leave_steps_short_while_clients_are_about() -> None:
    steps = Steps([line("a", num_prompt=1000), request("client", num_done=1)])
    assert steps.step() == {"client": 1, "a": 32}
    assert steps.max_num_scheduled_tokens == STEP_TOKENS


def test_prompts_of_a_batch_alone_leave_steps_short_for_the_first_client() -> None:
    steps = Steps(waiting=[line("a", num_prompt=200), line("b", num_prompt=900)])
    assert steps.step() == {"a": 200, "b": 56}


def test_a_client_that_gets_no_first_token_does_not_stop_a_batch() -> None:
    steps = Steps([line("a", num_done=3)], [request("client")])
    steps.max_num_active_reqs = 1  # as where the batch holds the cache blocks that the client needs
    counts = [len(steps.step()) for _ in range(3 * (MOST_STEPS_OUT + 1))]
    assert sum(counts) == 3


@pytest.mark.parametrize("longest_s", [LONGEST_STEP_S, LONGEST_STEP_ALONE_S])
def test_the_share_is_learnt_from_steps_that_have_it_all(longest_s: float) -> None:
    share, now_s = BackgroundShare(), 100.0
    if longest_s == LONGEST_STEP_S:
        share.client_seen(now_s)

    def after(step_s: float, num_missing: int = 0) -> float:
        nonlocal now_s
        before = share.tokens(is_first_token_due=False, now_s=now_s)
        share.scheduled(before - num_missing, now_s)
        now_s += step_s
        return share.tokens(is_first_token_due=False, now_s=now_s) / before

    assert 1 < after(longest_s / 2) <= 1.25
    assert after(longest_s * 2) == 0.5
    assert after(longest_s * 2, num_missing=1) == 1


def test_a_batch_alone_gets_many_tokens_even_of_a_slow_machine() -> None:
    share = BackgroundShare()
    for now_s in range(20):
        num_tokens = share.tokens(is_first_token_due=False, now_s=float(now_s))
        share.scheduled(num_tokens, float(now_s))
    assert num_tokens == 128


def test_a_while_after_the_last_client_a_batch_gets_more() -> None:
    share = BackgroundShare()
    share.client_seen(1.0)
    beside, alone = (share.tokens(is_first_token_due=False, now_s=now_s + ABOUT_S) for now_s in (1.0, 1.1))
    assert alone > beside
