"""A fleet of simulated servers behind a router: the events, and what they add up to."""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from adapters.placement import ReplicaLoad, choose_replica, copies_wanted, less_busy_of_two
from loadtest.load.records import LoadtestRecord
from loadtest.simulate.replica import ServerModel, SimulatedReplica, SimulatedRequest

Policy = Literal["random", "two_choices", "affinity", "placement"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
"""`affinity`: one server an adapter, by hash. `placement`: what `lorikeet serve --cluster ray` does."""

_SAY_EVERY = 5000


class FleetFigures(LoadtestRecord):
    """What a simulated fleet did with all requests. Times in seconds.

    Attributes:
        tokens_per_s: Of answers, from the first arrival to the last end.
        cold_share: Answered requests that waited for a load.
        refused_share: Requests that were refused, of all; times are of the others.
        busiest_share: Of the requests, by the server that got most.
    """

    policy: Policy
    num_replicas: int
    num_requests: int
    tokens_per_s: float
    requests_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    e2e_p99_s: float
    num_loads: int
    cold_share: float
    refused_share: float
    busiest_share: float


class Router:
    """Chooses a server for each request, by one policy."""

    def __init__(self, policy: Policy, replicas: Sequence[SimulatedReplica], seed: int) -> None:
        self._policy = policy
        self._replicas = replicas
        self._rng = random.Random(f"router {seed}")
        self._everyone = range(len(replicas))
        self._holders: dict[int, list[int]] = {}

    def choose(self, adapter: int | None) -> int:
        """Index of the server."""
        if self._policy == "random" or len(self._replicas) == 1:
            return self._rng.randrange(len(self._replicas))
        if self._policy == "two_choices" or adapter is None:
            return less_busy_of_two(self._everyone, self._load, self._rng)
        if self._policy == "affinity":
            return random.Random(f"home of {adapter}").randrange(len(self._replicas))
        holders = [index for index in self._holders.get(adapter, ()) if adapter in self._replicas[index].resident]
        chosen = choose_replica(
            holders, self._others(holders), self._load, self._rng, lambda: self._copies(adapter, holders)
        )
        self._holders[adapter] = holders if chosen in holders else [*holders, chosen]
        return chosen

    def _others(self, holders: Sequence[int]) -> Sequence[int]:
        """A few that do not hold it; of a large fleet as many are drawn as the policy looks at."""
        if len(self._replicas) <= 16:
            return [index for index in self._everyone if index not in holders]
        return [index for index in self._rng.sample(self._everyone, 8) if index not in holders]

    def _copies(self, adapter: int, holders: Sequence[int]) -> int:
        num_own = sum(self._replicas[index].num_requests_for(adapter) for index in holders)
        num_all = sum(replica.num_requests for replica in self._replicas)
        return copies_wanted(num_own + 1, num_all + 1, len(self._replicas))

    def _load(self, index: int) -> ReplicaLoad:
        replica = self._replicas[index]
        model = replica.model
        return ReplicaLoad(replica.num_requests, model.max_running, len(replica.resident), model.max_adapters)


def simulate(
    model: ServerModel,
    requests: Iterable[SimulatedRequest],
    num_replicas: int,
    policy: Policy,
    seed: int = 13,
    on_requests: Callable[[int], None] = lambda count: None,
) -> FleetFigures:
    """Send requests to a fleet until all are answered.

    Args:
        requests: In the order of their times; they are changed.
        on_requests: Called with numbers of requests that have arrived.

    Raises:
        ValueError: `requests` is empty, or `num_replicas` is below 1.
    """
    if num_replicas < 1:
        raise ValueError(f"A fleet needs at least one server; got {num_replicas}.")
    replicas = [SimulatedReplica(model) for _ in range(num_replicas)]
    router, sent = Router(policy, replicas, seed), list(requests)
    if not sent:
        raise ValueError("At least one request is required.")
    events: list[tuple[float, int]] = []
    counts = [0] * num_replicas
    for number, request in enumerate(sent, 1):
        _run_until(request.at_s, events, replicas)
        index = router.choose(request.adapter)
        counts[index] += 1
        replicas[index].arrive(request, request.at_s)
        heapq.heappush(events, (replicas[index].next_s, index))
        if number % _SAY_EVERY == 0:
            on_requests(_SAY_EVERY)
    _run_until(float("inf"), events, replicas)
    on_requests(len(sent) % _SAY_EVERY)
    return _figures(policy, replicas, sent, counts)


def _run_until(end_s: float, events: list[tuple[float, int]], replicas: Sequence[SimulatedReplica]) -> None:
    """What happens before a time; an event whose server has another time by now is not one."""
    while events and events[0][0] < end_s:
        now_s, index = heapq.heappop(events)
        replica = replicas[index]
        if now_s != replica.next_s:
            continue
        replica.wake(now_s)
        if replica.next_s < float("inf"):
            heapq.heappush(events, (replica.next_s, index))


def _figures(
    policy: Policy, replicas: Sequence[SimulatedReplica], sent: Sequence[SimulatedRequest], counts: Sequence[int]
) -> FleetFigures:
    done = [request for request in sent if not request.is_refused]
    ttft = np.array([request.ttft_s for request in done])
    e2e = np.array([request.end_s - request.at_s for request in done])
    length_s = max(request.end_s for request in done) - sent[0].at_s
    return FleetFigures(
        policy=policy,
        num_replicas=len(replicas),
        num_requests=len(sent),
        tokens_per_s=sum(request.answer_tokens for request in done) / length_s,
        requests_per_s=len(done) / length_s,
        ttft_p50_s=float(np.percentile(ttft, 50)),
        ttft_p99_s=float(np.percentile(ttft, 99)),
        e2e_p99_s=float(np.percentile(e2e, 99)),
        num_loads=sum(replica.num_loads for replica in replicas),
        cold_share=sum(request.is_cold for request in done) / len(done),
        refused_share=1 - len(done) / len(sent),
        busiest_share=max(counts) / len(sent),
    )
