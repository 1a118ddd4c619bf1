"""A server's speed from the records of one load test, and how well the simulation then repeats that very run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from loadtest.errors import LoadtestError
from loadtest.load.records import RequestRecord, RunResult
from loadtest.simulate.replica import ServerModel, SimulatedRequest

_MIN_REQUESTS = 20
_MIN_GAPS = 10
"""Of one batch size, for its median to count."""
_MIN_COLD = 3


@dataclass(frozen=True)
class Limits:
    """A server's settings, which a load test does not tell: `max_num_seqs`, `max_loras`, `max_cpu_loras`."""

    max_running: int
    max_loras: int
    max_adapters: int


def calibrate(run: RunResult, limits: Limits, load_s: float | None = None) -> ServerModel:
    """Fit the lengths of steps, prompts and loads.

    Step: a line through the median gaps between tokens, by how many answers streamed at the time. Prompt: what is left
    of the times to the first token of warm requests; its part for each token where the prompts' lengths differ, else
    all of it. Load: median time to the first token of cold requests, less that of warm ones.

    Args:
        load_s: Of a cold adapter, where the run has too few.

    Raises:
        LoadtestError: The run has too few good, streamed answers, or no cold ones and no `load_s`.
    """
    good = [record for record in run.records if record.is_ok and len(record.chunk_times_s) > 1]
    if len(good) < _MIN_REQUESTS:
        raise LoadtestError(
            f"Run {run.name!r} has {len(good)} streamed answers of more than one token; at least {_MIN_REQUESTS} are "
            "needed. Run a longer load test."
        )
    step_s, sequence_s = _step_line(good)
    warm = [record for record in good if not record.is_cold]
    cold = [record for record in good if record.is_cold]
    if not warm:
        raise LoadtestError(f"Run {run.name!r} has cold requests only. Ask some adapters more than once.")
    if load_s is None:
        if len(cold) < _MIN_COLD:
            raise LoadtestError(
                f"Run {run.name!r} has {len(cold)} cold requests; {_MIN_COLD} are needed to measure a load. Give its "
                "seconds as `--load-s`, or run with more adapters than have been asked."
            )
        load_s = max(0.0, _median_ttft(cold) - _median_ttft(warm))
    prompt_token_s, overhead_s = _prompt_line(warm, step_s, sequence_s)
    return ServerModel(
        step_s=step_s,
        sequence_s=sequence_s,
        prompt_token_s=prompt_token_s,
        overhead_s=overhead_s,
        load_s=load_s,
        max_running=limits.max_running,
        max_loras=limits.max_loras,
        max_adapters=limits.max_adapters,
    )


def requests_of(run: RunResult) -> list[SimulatedRequest]:
    """The run's own requests, at their intended times; failed ones are left out.

    Raises:
        LoadtestError: All failed.
    """
    if not any(record.is_ok for record in run.records):
        raise LoadtestError(f"Run {run.name!r} has no answered request.")
    names = sorted({record.model for record in run.records})
    numbers = {name: number for number, name in enumerate(names)}
    return [
        SimulatedRequest(
            at_s=record.intended_s,
            adapter=None if record.is_cold is None else numbers[record.model],
            prompt_tokens=record.num_prompt_tokens or 1,
            answer_tokens=max(1, record.num_completion_tokens),
        )
        for record in sorted(run.records, key=lambda record: record.intended_s)
        if record.is_ok
    ]


def _median_ttft(records: Sequence[RequestRecord]) -> float:
    return median(record.ttft_s for record in records if record.ttft_s is not None)


def _step_line(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """Seconds of a step, and more for each sequence."""
    starts = np.sort([record.chunk_times_s[0] for record in records])
    ends = np.sort([record.chunk_times_s[-1] for record in records])
    gaps: dict[int, list[float]] = defaultdict(list)
    for record in records:
        for at_s, next_s in zip(record.chunk_times_s, record.chunk_times_s[1:], strict=False):
            streaming = int(np.searchsorted(starts, at_s, "right") - np.searchsorted(ends, at_s, "right"))
            gaps[max(1, streaming)].append(next_s - at_s)
    known = {number: own for number, own in gaps.items() if len(own) >= _MIN_GAPS} or gaps
    sizes = np.array(sorted(known), dtype=float)
    medians = np.array([median(known[int(size)]) for size in sizes])
    weights = np.sqrt([len(known[int(size)]) for size in sizes])
    if len(sizes) == 1:
        return float(medians[0]), 0.0
    slope, base = np.polyfit(sizes, medians, 1, w=weights)
    if slope < 0:
        return float(np.average(medians, weights=weights)), 0.0
    return max(0.0, float(base)), float(slope)


def _prompt_line(records: Sequence[RequestRecord], step_s: float, sequence_s: float) -> tuple[float, float]:
    """Seconds for each token of a prompt, and for each request.

    Of each length the fastest quarter counts: the rest waited for a step of others.
    """
    by_length: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.ttft_s is not None:
            by_length[record.num_prompt_tokens or 1].append(record.ttft_s - step_s - sequence_s)
    lengths = np.array(sorted(by_length), dtype=float)
    fastest = np.array([float(np.quantile(by_length[int(length)], 0.25)) for length in lengths])
    weights = np.sqrt([len(by_length[int(length)]) for length in lengths])
    if lengths[-1] >= 2 * lengths[0]:
        slope, rest = np.polyfit(lengths, fastest, 1, w=weights)
        if slope > 0 and rest > 0:
            return float(slope), float(rest)
    whole = max(0.0, float(np.average(fastest, weights=weights)))
    return whole / float(np.average(lengths, weights=weights)), 0.0
