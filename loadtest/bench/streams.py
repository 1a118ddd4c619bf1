"""Running streams watched while something else happens: the gaps between their tokens, and the server's CPU time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from loadtest.bench.cost import ComparedServer, require_success
from loadtest.bench.processes import CpuMeter
from loadtest.errors import TargetError
from loadtest.load.client import open_client
from loadtest.load.records import RequestRecord
from loadtest.load.runner import Runner
from loadtest.load.workload import plan
from loadtest.report.stats import percentile

_SETTLE_S = 6.0
"""From the first request until all prompts are read."""
_AFTER_S = 0.5
"""A stall that ends a load shows in the token that comes after it."""


@dataclass(frozen=True)
class Stretch:
    """What streams saw over a stretch of time.

    Attributes:
        itl_p99_s: Over all gaps of all streams, seconds.
        duration_s: Of what happened meanwhile.
        tokens_per_s: Of all streams.
    """

    itl_p99_s: float
    cpu_ms_per_token: float
    duration_s: float
    tokens_per_s: float = 0.0


def streams_of(side: ComparedServer, model: str, num_streams: int, num_tokens: int, seed: int) -> LoadtestConfig:
    """Long greedy answers, one after the other in each stream, of which each token is a chunk."""
    return LoadtestConfig(
        url=side.url,
        mix=MixConfig(models=(model,)),
        arrival=ClosedArrival(kind="closed", concurrency=num_streams),
        duration_s=3600,
        prompts=SyntheticPrompts(num_words=FixedLength(value=48)),
        max_tokens=FixedLength(value=num_tokens),
        return_token_ids=True,
        request_timeout_s=3600,
        seed=seed,
    )


async def watch_streams(
    config: LoadtestConfig, pid: int, meanwhile: Callable[[], Awaitable[None]], settle_s: float = _SETTLE_S
) -> Stretch:
    """Start the streams, let them settle, observe them while `meanwhile` runs, then cancel them.

    Args:
        pid: The server's process.

    Raises:
        TargetError: A stream failed, or none had a gap.
    """
    start_s = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - start_s

    meter = CpuMeter(pid)
    async with open_client(clock=clock) as client:
        runner = Runner(config, client, clock)
        running = asyncio.create_task(runner.run(plan(config, Path())))
        try:
            await asyncio.sleep(settle_s)
            with meter:
                begin_s = clock()
                await meanwhile()
                duration_s = clock() - begin_s
                await asyncio.sleep(_AFTER_S)
            end_s = clock()
        finally:
            runner.stop.set()
            outcome = await running
    require_success(tuple(record for record in outcome.records if record.error != "unfinished"), config.url)
    gaps_s = list(gaps_between(outcome.records, begin_s, end_s))
    if not gaps_s:
        raise TargetError(
            f"No stream at {config.url!r} received two tokens in {end_s - begin_s:.1f} s. See the server's log."
        )
    return Stretch(
        percentile(gaps_s, 99), 1000 * meter.cpu_s / len(gaps_s), duration_s, len(gaps_s) / (end_s - begin_s)
    )


def gaps_between(records: Iterable[RequestRecord], begin_s: float, end_s: float) -> Iterator[float]:
    """Seconds between neighbouring tokens of one stream, of those gaps that ended in this stretch of time."""
    for record in records:
        for before_s, at_s in pairwise(record.chunk_times_s):
            if begin_s < at_s <= end_s:
                yield at_s - before_s
