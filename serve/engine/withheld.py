"""Log-probabilities that only our observer reads, delivered with an answer's last token.

vLLM's scheduler (0.32) sends those of each token to the server's process as arrays of their own, which costs both
processes more than the token itself. What no client sees can wait until the answer ends.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from serve.engine.replace import replace_method


def withhold_logprobs() -> None:
    """Replace the scheduler's methods; done twice, it does no more."""
    from vllm.v1.core.sched.scheduler import Scheduler

    replace_method(Scheduler, "add_request", _add_request)
    replace_method(Scheduler, "update_from_output", _update_from_output)
    replace_method(Scheduler, "finish_requests", _finish_requests)


def _add_request(stock: Any, scheduler: Any, request: Any) -> None:
    stock(scheduler, request)
    if is_for_the_observer(request.sampling_params):
        _withheld(scheduler)[request.request_id] = []


def _update_from_output(stock: Any, scheduler: Any, scheduler_output: Any, model_output: Any) -> Any:
    withheld = _withheld(scheduler)
    if not withheld:
        return stock(scheduler, scheduler_output, model_output)
    if model_output.logprobs is not None:
        model_output.logprobs = StepLogprobs(model_output.logprobs)
    found = stock(scheduler, scheduler_output, model_output)
    for of_client in found.values():
        hold_back(of_client.outputs, withheld)
    return found


def _finish_requests(stock: Any, scheduler: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
    """Args: request_ids: One, several, or None for all."""
    ids = (request_ids,) if isinstance(request_ids, str) else request_ids
    ids = None if ids is None else tuple(ids)
    withheld = _withheld(scheduler)
    for request_id in tuple(withheld) if ids is None else ids:
        withheld.pop(request_id, None)
    return stock(scheduler, ids, *args, **kwargs)


def _withheld(scheduler: Any) -> dict[str, list[tuple[int, float]]]:
    """By request, what has come so far: token id and log-probability."""
    withheld: dict[str, list[tuple[int, float]]] = scheduler.__dict__.setdefault("lorikeet_withheld", {})
    return withheld


def is_for_the_observer(sampling_params: Any) -> bool:
    """Whether they are `with_logprobs`' (observed.py), of an answer that ends in the scheduler.

    One with stop strings ends in the server's process, which sees them only there.
    """
    return bool(
        sampling_params is not None
        and sampling_params.flat_logprobs
        and sampling_params.logprobs == 0
        and not sampling_params.stop
    )


class StepLogprobs:
    """vLLM's `LogprobsLists` of a step, which it cuts into arrays for each request: here once they are to go out."""

    def __init__(self, lists: Any) -> None:
        self._lists = lists
        # The first column is the sampled token's.
        self._rows = list(zip(lists.logprob_token_ids[:, 0].tolist(), lists.logprobs[:, 0].tolist(), strict=True))

    def slice_request(self, request: int, num_tokens: int) -> "RequestSlice":
        return RequestSlice(self, request, num_tokens)

    def rows(self, request: int, num_tokens: int) -> list[tuple[int, float]]:
        """Token id and log-probability of each sampled token of a request."""
        starts = self._lists.cu_num_generated_tokens
        start = request if starts is None else starts[request]
        return self._rows[start : start + num_tokens]

    def arrays(self, request: int, num_tokens: int) -> Any:
        """What vLLM would have cut."""
        return self._lists.slice_request(request, num_tokens)


class RequestSlice(NamedTuple):
    """A request's share of a step; `request` is its place in the batch."""

    of: StepLogprobs
    request: int
    num_tokens: int


def hold_back(outputs: Iterable[Any], withheld: dict[str, list[tuple[int, float]]]) -> None:
    """Take the log-probabilities of vLLM's `EngineCoreOutput`s that are withheld, and give them with the last one.

    Args:
        withheld: By request; those that end are removed.
    """
    for output in outputs:
        piece: RequestSlice | None = output.new_logprobs
        rows = withheld.get(output.request_id)
        if rows is None:
            output.new_logprobs = piece and piece.of.arrays(piece.request, piece.num_tokens)
            continue
        if piece is not None:
            rows += piece.of.rows(piece.request, piece.num_tokens)
        output.new_logprobs = None
        if output.finish_reason is not None:
            del withheld[output.request_id]
            output.new_logprobs = _lists(rows) if rows else None


def _lists(rows: list[tuple[int, float]]) -> Any:
    """vLLM's `LogprobsLists` with a row a token, without ranks (0)."""
    from vllm.v1.outputs import LogprobsLists

    token_ids, logprobs = zip(*rows, strict=True)
    return LogprobsLists(
        np.array(token_ids, np.int32)[:, None],
        np.array(logprobs, np.float32)[:, None],
        np.zeros(len(rows), np.int64),
    )
