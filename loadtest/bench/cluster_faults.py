"""What happens to requests while a replica is killed, and while replicas come and go."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from loadtest.bench.cluster_server import (
    load_on,
    replica_processes,
    replicas_of,
    wait_for_replicas,
    wrong_answers,
)
from loadtest.bench.results import BenchResult, compared
from loadtest.bench.server import RunningServer, ServerError
from loadtest.load.records import LoadtestRecord, RequestRecord

_KILL_AFTER_S = 8.0
_LOAD_AROUND_KILL_S = 30.0
_MORE_TIME = 2.0
"""A replica that is not back after so many start times is not waited for any longer."""

_ROUND_S = 10.0
_MAX_SCALING_S = 150.0
MANY_STREAMS, FEW_STREAMS = 24, 2
SCALING: dict[str, float] = {"target_load": 0.3, "scale_up_after_s": 3, "scale_down_after_s": 6}
"""A batch holds 32 sequences: one replica is too few for many streams, and enough for few."""


class LoadOutcome(LoadtestRecord):
    """Requests of a load by outcome; `num_unsent`: failed before a token was sent."""

    num_requests: int
    num_failed: int
    num_unsent: int
    num_wrong: int

    def __str__(self) -> str:
        return (
            f"{self.num_requests} requests, {self.num_failed} failed, {self.num_unsent} of them before a token was "
            f"sent, {self.num_wrong} wrong answers"
        )


class Kill(LoadtestRecord):
    """A load around the kill of a replica.

    Attributes:
        num_there: Requests that the killed replica had when it was killed.
        back_s: From the kill until all replicas answer again.
        start_s: Start time of the server with all its replicas.
    """

    outcome: LoadOutcome
    num_there: int
    back_s: float
    start_s: float

    def __str__(self) -> str:
        return (
            f"{self.outcome}; {self.num_there} were in the killed replica, which was back after {self.back_s:.1f} s "
            f"(start of all: {self.start_s:.1f} s)"
        )


def kill_a_replica(server: RunningServer, names: tuple[str, ...], number: int) -> Kill:
    """SIGKILL of the newest of so many replicas, under load.

    Raises:
        ServerError: It does not come back.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_on, server, names, duration_s=_LOAD_AROUND_KILL_S, seed=5)
        time.sleep(_KILL_AFTER_S)
        before = replicas_of(server.url)
        newest = replica_processes(server)[-1:]
        if not newest:
            raise ServerError("No replica is running that could be killed.")
        newest[0].kill()
        killed_s = time.monotonic()
        left = _ranks_after_kill(server, number)
        wait_for_replicas(server, number, timeout_s=_MORE_TIME * server.ready_s)
        back_s = time.monotonic() - killed_s
        records = loading.result().records
    num_there = int(sum(count for rank, count in before.items() if rank not in left))
    return Kill(outcome=outcome_of(records, names), num_there=num_there, back_s=back_s, start_s=server.ready_s)


def kill_results(kill: Kill) -> tuple[BenchResult, ...]:
    """Rows of a kill."""
    outcome = kill.outcome
    return (
        _must_be_none("SIGKILL of a replica: wrong answers", outcome.num_wrong),
        BenchResult(
            name=f"SIGKILL of a replica: failed requests of {outcome.num_requests} (baseline: in flight there)",
            value=outcome.num_failed,
            unit="requests",
            baseline=kill.num_there,
            target="at most those in flight there",
            is_pass=outcome.num_failed <= kill.num_there,
        ),
        _must_be_none("SIGKILL of a replica: failed requests before a token was sent", outcome.num_unsent),
        compared(
            "SIGKILL of a replica: until it is back (baseline: the start of all)",
            "s",
            kill.start_s,
            kill.back_s,
            most=1,
        ),
    )


class Scaling(LoadtestRecord):
    """Loads while a second replica comes, and while it goes."""

    outcome: LoadOutcome
    up_s: float
    down_s: float

    def __str__(self) -> str:
        return f"{self.outcome}; 2 replicas after {self.up_s:.1f} s, 1 after {self.down_s:.1f} s"


def scale_up_and_down(server: RunningServer, names: tuple[str, ...]) -> Scaling:
    """A load for which one replica is too few, until there are two; then a small one, until there is one.

    Raises:
        ServerError: The number of replicas does not follow.
    """
    up, up_s = _load_until(server, names, MANY_STREAMS, lambda: len(replicas_of(server.url)) == 2)
    both = load_on(server, names, duration_s=_ROUND_S, streams=MANY_STREAMS, seed=99).records
    down, down_s = _load_until(server, names, FEW_STREAMS, lambda: len(replicas_of(server.url)) == 1)
    return Scaling(outcome=outcome_of((*up, *both, *down), names), up_s=up_s, down_s=down_s)


def scaling_results(scaling: Scaling) -> tuple[BenchResult, ...]:
    """Rows of the scaling."""
    outcome = scaling.outcome
    return (
        _must_be_none(f"scale 1 -> 2 -> 1: failed requests of {outcome.num_requests}", outcome.num_failed),
        _must_be_none("scale 1 -> 2 -> 1: wrong answers", outcome.num_wrong),
        BenchResult(name="scale 1 -> 2: from the load to the second replica's answers", value=scaling.up_s, unit="s"),
        BenchResult(name="scale 2 -> 1: from the small load to the end of one", value=scaling.down_s, unit="s"),
    )


def outcome_of(records: tuple[RequestRecord, ...], names: tuple[str, ...]) -> LoadOutcome:
    """Counts of a load on version 1 of each name."""
    failed = [record for record in records if not record.is_ok]
    return LoadOutcome(
        num_requests=len(records),
        num_failed=len(failed),
        num_unsent=sum(record.ttft_s is None for record in failed),
        num_wrong=len(wrong_answers(records, {name: f"{name}@1" for name in names})),
    )


def _load_until(
    server: RunningServer, names: tuple[str, ...], streams: int, is_over: Callable[[], bool]
) -> tuple[list[RequestRecord], float]:
    records: list[RequestRecord] = []
    start_s, seed = time.monotonic(), 100
    while not is_over():
        if time.monotonic() - start_s > _MAX_SCALING_S:
            raise ServerError(f"The number of replicas did not change after {_MAX_SCALING_S:.0f} s of load.")
        records += load_on(server, names, duration_s=_ROUND_S, streams=streams, seed=seed).records
        seed += 1
    return records, time.monotonic() - start_s


def _ranks_after_kill(server: RunningServer, number: int) -> set[str]:
    """Ranks of the replicas that are left."""
    deadline_s = time.monotonic() + server.ready_s
    while not 0 < len(left := replicas_of(server.url)) < number and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return set(left)


def _must_be_none(name: str, value: int) -> BenchResult:
    return BenchResult(name=name, value=value, unit="requests", target="none", is_pass=value == 0)
