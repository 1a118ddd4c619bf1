"""Two versions of an adapter on trial, and what clients ask them, for tests of what looks on."""

from itertools import count
from typing import Any

from adapters.reference import Target
from adapters.store.manifest import QualityRules
from serve.records import AnsweredRequest, RequestContext, RequestOutcome
from tests.generations import generation

FIRST, SECOND, THIRD = (Target("medical", version) for version in (1, 2, 3))
RULES = QualityRules(margin=0.3, max_error_increase=0.3, max_slow_increase=0.3, min_pairs=5, max_hours=2)

_NUMBERS = count(1)


def request(
    target: Target = FIRST,
    outcome: RequestOutcome = "ok",
    reason: str | None = None,
    *,
    status: int = 200,
    ttft_s: float | None = 0.1,
    is_cold: bool = False,
    user: str | None = None,
    **changes: Any,
) -> AnsweredRequest:
    """A client's request, with its generation unless `ttft_s` is None; of nobody without a `user`."""
    request_id = f"r-{next(_NUMBERS)}"
    context = RequestContext("acme", request_id, is_cold=is_cold, sticky_key=user or request_id)
    generated = None if ttft_s is None else generation(str(target), ttft_s=ttft_s, **changes)
    return AnsweredRequest(context, "chat/completions", str(target), outcome, status, reason, 1.0, generated)
