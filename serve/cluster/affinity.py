"""Which replica a request goes to: `adapters/placement.py` with what one router knows. No Ray here."""

import random
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from adapters.placement import ReplicaLoad, choose_replica, copies_wanted, less_busy_of_two

ReplicaT = TypeVar("ReplicaT", bound=Hashable)
Routing = Literal["affinity", "sticky", "random"]
"""`sticky`: an adapter stays on one replica, however many requests it gets."""

PRIMARY = "primary"
"""Session of requests for the replica that runs the quality monitor."""

_PLACED_FOR_S = 10.0
"""An adapter counts as placed from its first request on; later than this it must have a request there, as while it is
loaded on a slow machine, or the replica must have reported it."""

_REPORTED_AFTER_S = 3.0
"""A replica has reported an adapter so long after the end of a request for it: its load may have taken longer than the
above, and reports come every second."""

_COMING_FOR_S = 2.0
"""A request counts from its choice on; one that the replica has not accepted after this was withdrawn."""

_MAX_PLACED = 1024


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica says of itself every second.

    Attributes:
        models: Public names that it answers without a load: `medical@3`, and `medical` where version 3 is stable.
    """

    rank: int = 0
    is_ready: bool = True
    models: frozenset[str] = frozenset()
    num_adapters: int = 0
    max_adapters: int = 1
    max_requests: int = 1

    @classmethod
    def parse(cls, stats: Mapping[str, Any]) -> "ReplicaReport":
        """Of a replica's routing statistics; one that has sent none yet is ready and empty."""
        return cls(**{**stats, "models": frozenset(stats.get("models", ()))})


@dataclass
class _Sent:
    """What was sent to one replica: requests that run and their models, those on their way with the time of the
    choice, and until when a model counts as placed there."""

    running: dict[str, str] = field(default_factory=dict)
    coming: dict[str, tuple[str, float]] = field(default_factory=dict)
    placed_until_s: dict[str, float] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        return len(self.running) + len(self.coming)

    def num_for(self, model: str) -> int:
        return sum(own == model for own in self.running.values()) + sum(own == model for own, _ in self.coming.values())

    def forget_withdrawn(self, since_s: float) -> None:
        self.coming = {name: (model, at_s) for name, (model, at_s) in self.coming.items() if at_s > since_s}


class Affinity(Generic[ReplicaT]):
    """Sends requests for an adapter where it is; one router's view of the replicas.

    Args:
        base_model: Name of the base, which every replica has.
        routing: `random` ignores what the replicas hold and `sticky` an adapter's load, for comparison.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        base_model: str,
        routing: Routing = "affinity",
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_model = base_model
        self._routing = routing
        self._rng = rng or random.Random()
        self._clock = clock
        self._sent: dict[ReplicaT, _Sent] = {}

    def send(
        self, request_id: str, model: str, reports: Mapping[ReplicaT, ReplicaReport], session: str = ""
    ) -> ReplicaT:
        """`choose` for a request that is sent there at once, and counts from now on."""
        for sent in self._sent.values():
            sent.coming.pop(request_id, None)  # chosen before, and not accepted
        chosen = self.choose(model, reports, session)
        self._sent.setdefault(chosen, _Sent()).coming[request_id] = model, self._clock()
        return chosen

    def choose(self, model: str, reports: Mapping[ReplicaT, ReplicaReport], session: str = "") -> ReplicaT:
        """The replica for one request; only those whose engine runs, if any does.

        Raises:
            ValueError: `replicas` is empty.
        """
        self._sent = {replica: sent for replica, sent in self._sent.items() if replica in reports}
        if session == PRIMARY:
            return min(reports, key=lambda replica: reports[replica].rank)
        ready = {replica: report for replica, report in reports.items() if report.is_ready} or dict(reports)
        if self._routing == "random":
            return self._rng.choice(list(ready))
        self._forget_withdrawn()
        if model in ("", self._base_model):
            return less_busy_of_two(list(ready), lambda replica: self._load(replica, ready[replica]), self._rng)
        chosen = self._choose_for_adapter(model, ready)
        if model not in self._placed(chosen):
            self._place(chosen, model, _PLACED_FOR_S)
        return chosen

    def began(self, replica: ReplicaT, request_id: str, model: str = "") -> None:
        """The replica has accepted a request."""
        sent = self._sent.setdefault(replica, _Sent())
        sent.coming.pop(request_id, None)
        sent.running[request_id] = model

    def ended(self, replica: ReplicaT, request_id: str) -> None:
        """It has ended, however."""
        sent = self._sent.get(replica)
        if sent is None:
            return
        sent.coming.pop(request_id, None)
        model = sent.running.pop(request_id, "")
        if model not in ("", self._base_model):
            self._place(replica, model, _REPORTED_AFTER_S)

    def _choose_for_adapter(self, model: str, ready: Mapping[ReplicaT, ReplicaReport]) -> ReplicaT:
        holders = [replica for replica, report in ready.items() if self._holds(replica, report, model)]
        others = [replica for replica in ready if replica not in holders]
        if self._routing == "sticky" and holders:
            others = []
        return choose_replica(
            holders,
            others,
            lambda replica: self._load(replica, ready[replica]),
            self._rng,
            lambda: self._copies(model, ready),
        )

    def _copies(self, model: str, ready: Collection[ReplicaT]) -> int:
        sent = [self._sent.get(replica, _Sent()) for replica in ready]
        num_own, num_all = sum(own.num_for(model) for own in sent), sum(own.num_requests for own in sent)
        return copies_wanted(num_own + 1, num_all + 1, len(ready))

    def _forget_withdrawn(self) -> None:
        since_s = self._clock() - _COMING_FOR_S
        for sent in self._sent.values():
            sent.forget_withdrawn(since_s)

    def _load(self, replica: ReplicaT, report: ReplicaReport) -> ReplicaLoad:
        num_adapters = report.num_adapters + len(self._placed(replica) - report.models)
        num_requests = self._sent.get(replica, _Sent()).num_requests
        return ReplicaLoad(num_requests, report.max_requests, num_adapters, report.max_adapters)

    def _holds(self, replica: ReplicaT, report: ReplicaReport, model: str) -> bool:
        return model in report.models or model in self._placed(replica)

    def _place(self, replica: ReplicaT, model: str, for_s: float) -> None:
        placed = self._sent.setdefault(replica, _Sent()).placed_until_s
        placed[model] = max(placed.get(model, 0.0), self._clock() + for_s)
        if len(placed) > _MAX_PLACED:
            del placed[next(iter(placed))]

    def _placed(self, replica: ReplicaT) -> set[str]:
        """Models that were sent there of late, which may be loading."""
        sent = self._sent.get(replica)
        if sent is None:
            return set()
        now_s = self._clock()
        sent.placed_until_s = {model: until_s for model, until_s in sent.placed_until_s.items() if until_s > now_s}
        return set(sent.placed_until_s) | (set(sent.running.values()) - {"", self._base_model})
