"""Log-probabilities that only our observer reads, delivered with an answer's last token.

vLLM's scheduler (0.32) sends those of each token to the server's process as arrays of their own, which costs both
processes more than the token itself. What no client sees can wait until the answer ends.
"""

from collections.abc import Iterable
from typing import Any

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


def _update_from_output(stock: Any, scheduler: Any, *args: Any) -> Any:
    found = stock(scheduler, *args)
    withheld = _withheld(scheduler)
    if withheld:
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


def _withheld(scheduler: Any) -> dict[str, list[Any]]:
    """By request, what has come so far."""
    withheld: dict[str, list[Any]] = scheduler.__dict__.setdefault("lorikeet_withheld", {})
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


def hold_back(outputs: Iterable[Any], withheld: dict[str, list[Any]]) -> None:
    """Take the log-probabilities of vLLM's `EngineCoreOutput`s that are withheld, and give them with the last one.

    Args:
        withheld: By request; those that end are removed.
    """
    for output in outputs:
        pieces = withheld.get(output.request_id)
        if pieces is None:
            continue
        if output.new_logprobs is not None:
            pieces.append(output.new_logprobs)
        output.new_logprobs = None
        if output.finish_reason is not None:
            del withheld[output.request_id]
            output.new_logprobs = _joined(pieces) if pieces else None


def _joined(pieces: list[Any]) -> Any:
    """Of vLLM's `LogprobsLists`: three arrays with a row a token, and no fourth."""
    ids, logprobs, ranks, _ = zip(*pieces, strict=True)
    return type(pieces[0])(np.concatenate(ids), np.concatenate(logprobs), np.concatenate(ranks), None)
