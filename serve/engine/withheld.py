"""Log-probabilities that only our observer reads, delivered with an answer's last token.

vLLM's scheduler (0.32) sends those of each token to the server's process as arrays of their own, which costs both
processes more than the token itself. What no client sees can wait until the answer ends.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

_MARK = "_lorikeet"
_WITHHELD = "lorikeet_withheld"


def withhold_logprobs() -> None:
    """Replace the scheduler's methods; done twice, it does no more."""
    from vllm.v1.core.sched.scheduler import Scheduler

    scheduler: Any = Scheduler
    if hasattr(scheduler.update_from_output, _MARK):
        return
    add, update, finish = scheduler.add_request, scheduler.update_from_output, scheduler.finish_requests

    def add_request(self: Any, request: Any) -> None:
        add(self, request)
        if is_for_the_observer(request.sampling_params):
            self.__dict__.setdefault(_WITHHELD, {})[request.request_id] = []

    def update_from_output(self: Any, *args: Any) -> Any:
        found = update(self, *args)
        withheld = self.__dict__.get(_WITHHELD)
        if withheld:
            for of_client in found.values():
                hold_back(of_client.outputs, withheld)
        return found

    def finish_requests(self: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        request_ids = (request_ids,) if isinstance(request_ids, str) else request_ids and tuple(request_ids)
        withheld = self.__dict__.get(_WITHHELD, {})
        for request_id in tuple(withheld) if request_ids is None else request_ids:
            withheld.pop(request_id, None)
        return finish(self, request_ids, *args, **kwargs)

    setattr(update_from_output, _MARK, update)
    scheduler.add_request = add_request
    scheduler.update_from_output = update_from_output
    scheduler.finish_requests = finish_requests


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
