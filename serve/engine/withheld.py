"""Log-probabilities that only our observer reads, delivered with an answer's last token.

vLLM's scheduler (0.32) sends those of each token to the server's process as arrays of their own, which costs both
processes more than the token itself. What no client sees can wait until the answer ends.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

OBSERVER_MARK = "lorikeet_observer"
"""Of requests whose log-probabilities only our observer reads: a key of `SamplingParams.extra_args`.

The server accepts no `vllm_xargs`, which are a client's way to write there.
"""

Row = tuple[int, float]
"""Token id and log-probability of a sampled token."""


def is_for_the_observer(sampling_params: Any) -> bool:
    """Whether they have the mark (`with_logprobs`, observed.py), and the answer ends in the scheduler.

    One with stop strings ends in the server's process, which sees them only there.
    """
    extra = sampling_params.extra_args if sampling_params is not None else None
    return bool(extra and extra.get(OBSERVER_MARK) and not sampling_params.stop)


class Withheld:
    """What has come so far of the requests with the mark, by request."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = {}

    def add(self, request: Any) -> None:
        if is_for_the_observer(request.sampling_params):
            self._rows[request.request_id] = []

    def drop(self, request_ids: Iterable[str] | None) -> None:
        """None: all."""
        for request_id in tuple(self._rows if request_ids is None else request_ids):
            self._rows.pop(request_id, None)

    def wrap(self, model_output: Any) -> bool:
        """Whether anything of this step may be withheld: then its log-probabilities are not cut yet."""
        if self._rows and model_output.logprobs is not None:
            model_output.logprobs = StepLogprobs(model_output.logprobs)
        return bool(self._rows)

    def hold_back(self, of_clients: Mapping[int, Any]) -> None:
        for of_client in of_clients.values():
            hold_back(of_client.outputs, self._rows)


class StepLogprobs:
    """vLLM's `LogprobsLists` of a step, which it cuts into arrays for each request: here once they are to go out."""

    def __init__(self, lists: Any) -> None:
        self._lists = lists
        # The first column is the sampled token's.
        self._rows = list(zip(lists.logprob_token_ids[:, 0].tolist(), lists.logprobs[:, 0].tolist(), strict=True))

    def slice_request(self, request: int, num_tokens: int) -> "RequestSlice":
        return RequestSlice(self, request, num_tokens)

    def rows(self, request: int, num_tokens: int) -> list[Row]:
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


def hold_back(outputs: Iterable[Any], withheld: dict[str, list[Row]]) -> None:
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


def _lists(rows: list[Row]) -> Any:
    """vLLM's `LogprobsLists` with a row a token, without ranks (0)."""
    from vllm.v1.outputs import LogprobsLists

    token_ids, logprobs = zip(*rows, strict=True)
    return LogprobsLists(
        np.array(token_ids, np.int32)[:, None],
        np.array(logprobs, np.float32)[:, None],
        np.zeros(len(rows), np.int64),
    )
