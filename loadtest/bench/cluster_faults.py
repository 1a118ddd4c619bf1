"""What happens to requests while a replica is killed, and while replicas come and go."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loadtest.bench.cluster_server import (
    load_on,
    replica_processes,
    replicas_of,
    wait_for_replicas,
    wrong_answers,
)
from loadtest.bench.results import BenchResult
from loadtest.bench.server import RunningServer, ServerError
from loadtest.load.records import RequestRecord

_KILL_AFTER_S = 8.0
_LOAD_AROUND_KILL_S = 40.0
_MORE_TIME = 2.0
"""A replica that is not back after so many start times is not waited for any longer."""

_ROUND_S = 10.0
_MAX_SCALING_S = 180.0
FEW_STREAMS = 2


@dataclass(frozen=True)
class Kill:
    """A load around the kill of a replica.

    Attributes:
        num_there: Requests that the killed replica had when it was killed.
        back_s: From the kill until all replicas answer again.
        start_s: Start time of the server with all its replicas.
    """

    records: tuple[RequestRecord, ...]
    num_wrong: int
    num_there: int
    back_s: float
    start_s: float


def kill_a_replica(server: RunningServer, names: tuple[str, ...], number: int) -> Kill:
    """SIGKILL of the newest of so many replicas, under load.

    Raises:
        ServerError: It does not come back.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_on, server, names, duration_s=_LOAD_AROUND_KILL_S, seed=5)
        time.sleep(_KILL_AFTER_S)
        before = replicas_of(server.url)
        replica_processes(server)[-1].kill()
        killed_s = time.monotonic()
        left = _ranks_after_kill(server, number)
        wait_for_replicas(server, number, timeout_s=_MORE_TIME * server.ready_s)
        back_s = time.monotonic() - killed_s
        records = loading.result().records
    num_there = int(sum(count for rank, count in before.items() if rank not in left))
    num_wrong = len(wrong_answers(records, _versions(names)))
    return Kill(records, num_wrong, num_there, back_s, server.ready_s)


def kill_results(kill: Kill) -> tuple[BenchResult, ...]:
    """Rows of a kill."""
    failed = [record for record in kill.records if not record.is_ok]
    num_unsent = sum(record.ttft_s is None for record in failed)
    ratio = kill.back_s / kill.start_s
    return (
        _must_be_none("SIGKILL of a replica: wrong answers", kill.num_wrong),
        BenchResult(
            name=f"SIGKILL of a replica: failed requests of {len(kill.records)} (baseline: in flight there)",
            value=len(failed),
            unit="requests",
            baseline=kill.num_there,
            target="at most those in flight there",
            is_pass=len(failed) <= kill.num_there,
        ),
        _must_be_none("SIGKILL of a replica: failed requests that had sent nothing", num_unsent),
        BenchResult(
            name="SIGKILL of a replica: until it is back (baseline: the start of all)",
            value=kill.back_s,
            unit="s",
            baseline=kill.start_s,
            ratio=ratio,
            target="ratio at most 1",
            is_pass=ratio <= 1,
        ),
    )


@dataclass(frozen=True)
class Scaling:
    """Loads while a second replica comes, and while it goes."""

    records: tuple[RequestRecord, ...]
    num_wrong: int
    up_s: float
    down_s: float


def scale_up_and_down(server: RunningServer, names: tuple[str, ...], streams: int) -> Scaling:
    """A load for which one replica is too few, until there are two; then a small one, until there is one.

    Raises:
        ServerError: The number of replicas does not follow.
    """
    up, up_s = _load_until(server, names, streams, lambda: len(replicas_of(server.url)) == 2)
    both = load_on(server, names, duration_s=_ROUND_S, streams=streams, seed=99).records
    down, down_s = _load_until(server, names, FEW_STREAMS, lambda: len(replicas_of(server.url)) == 1)
    records = (*up, *both, *down)
    return Scaling(records, len(wrong_answers(records, _versions(names))), up_s, down_s)


def scaling_results(scaling: Scaling) -> tuple[BenchResult, ...]:
    """Rows of the scaling."""
    num_failed = sum(not record.is_ok for record in scaling.records)
    return (
        _must_be_none(f"scale 1 -> 2 -> 1: failed requests of {len(scaling.records)}", num_failed),
        _must_be_none("scale 1 -> 2 -> 1: wrong answers", scaling.num_wrong),
        BenchResult(name="scale 1 -> 2: from the load to the second replica's answers", value=scaling.up_s, unit="s"),
        BenchResult(name="scale 2 -> 1: from the small load to the end of one", value=scaling.down_s, unit="s"),
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


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    return {name: f"{name}@1" for name in names}


def _must_be_none(name: str, value: int) -> BenchResult:
    return BenchResult(name=name, value=value, unit="requests", target="none", is_pass=value == 0)
