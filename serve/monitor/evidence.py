"""What a server has seen of stable and canary since their trial began, as `quality.verdict` wants it. No clock, no I/O.

Only paired observations are kept. They can be written down and taken up again: a server that starts anew in the
middle of a trial goes on with it. A canary's observation takes the latest stable one that none has taken yet, as
`quality.verdict.pair_in_time` does, so that memory is bounded however much more traffic stable has.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from adapters.reference import Target
from quality.kept import TrialPair
from quality.verdict import Evidence, Observation
from serve.records import GenerationRecord, RequestRecord

MIN_TTFTS = 20
"""Stable's TTFTs that the threshold of slowness is taken from, at least."""

_SLOW_QUANTILE = 0.95
_MOST_UNUSED = 1000
_MOST_PAIRS = 20_000

Kind = Literal["score", "error", "slow", "threshold"]
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
_COMPARED: tuple[Kind, ...] = ("score", "error", "slow")

# A refused version is its own fault; a 503, a 429 or a wrong request is not.
_REFUSED, _FAILED, _TOO_LATE = "adapter_refused", "server_error", "deadline_exceeded"


class Pair(NamedTuple):
    """What both showed, and, of scores, which held-out probe they answered. "threshold": when a TTFT is slow, twice."""

    kind: Kind
    stable: float
    canary: float
    probe: int | None = None


class PairedStream:
    """Observations of one kind, in the order in which they were seen."""

    def __init__(
        self,
        pairs: Sequence[tuple[float, float]] = (),
        *,
        most_unused: int = _MOST_UNUSED,
        most_pairs: int = _MOST_PAIRS,
    ) -> None:
        self._unused: deque[float] = deque(maxlen=most_unused)
        self._most_pairs = most_pairs
        self.pairs = list(pairs)
        """(stable, canary); no more once there are very many, which decide or never will."""

    def stable_seen(self, value: float) -> None:
        self._unused.append(value)

    def canary_seen(self, value: float) -> tuple[float, float] | None:
        """The pair that it completes, if it does."""
        if not self._unused or len(self.pairs) >= self._most_pairs:
            return None
        self.pairs.append((self._unused.pop(), value))
        return self.pairs[-1]

    def observations(self, side: int) -> tuple[Observation, ...]:
        """Stable's (0) or the canary's (1). Their times are the pairs' numbers: `decide` looks at the order alone."""
        return tuple(Observation(float(number), pair[side]) for number, pair in enumerate(self.pairs))


class TrialEvidence:
    """An observer of one trial's requests and probes.

    Args:
        ttfts_before: TTFTs of stable, seconds, from before the canary. Where there are too few, stable's first ones
            beside the canary fix the threshold and count for nothing else.
        known: What the trial showed before this process.
    """

    def __init__(
        self, stable: Target, canary: Target, ttfts_before: Sequence[float] = (), known: Sequence[Pair] = ()
    ) -> None:
        self.stable_target, self.canary_target = stable, canary
        self._names = str(stable), str(canary)
        self._ttfts = list(ttfts_before)
        self._new: list[Pair] = []
        self.slow_threshold_s = next((pair.stable for pair in known if pair.kind == "threshold"), None)
        if self.slow_threshold_s is None:
            self._fix_threshold()
        once = {pair.probe: pair for pair in reversed(known) if pair.probe is not None}
        counted = [pair for pair in known if pair.probe is None or once[pair.probe] is pair]
        self._streams = {
            kind: PairedStream([(pair.stable, pair.canary) for pair in counted if pair.kind == kind])
            for kind in _COMPARED
        }
        self.probes = set(once)
        """The held-out probes that both have answered."""

    @property
    def num_pairs(self) -> int:
        """Of all three kinds together; it grows with each new piece of evidence."""
        return sum(len(stream.pairs) for stream in self._streams.values())

    def take_new(self) -> list[Pair]:
        """The pairs since the last call, to be written down."""
        new, self._new = self._new, []
        return new

    def give_back(self, pairs: list[Pair]) -> None:
        """Those that could not be; the next call has them again."""
        self._new = pairs + self._new

    def evidence(self) -> tuple[Evidence, Evidence]:
        """Of stable, and of the canary."""
        stable, canary = (
            Evidence(
                scores=self._streams["score"].observations(side),
                errors=self._streams["error"].observations(side),
                slow=self._streams["slow"].observations(side),
            )
            for side in (0, 1)
        )
        return stable, canary

    def request_finished(self, record: RequestRecord) -> None:
        """Count a client's request, where one of the two versions answered it or should have."""
        name = record.served_name
        if name in self._names:
            is_canary = name == self._names[1]
            self._add("error", is_canary, failure_of(record))
            self._see_ttft(is_canary, ttft_of(record))

    def generation_finished(self, record: GenerationRecord) -> None:
        """Count a shadow's copy, for errors only: it waits behind all clients, so its TTFT says nothing."""
        is_copy = record.source == "shadow" and record.lora_name == self._names[1]
        if is_copy and record.outcome != "cancelled":
            self._add("error", True, float(record.outcome == "error"))

    def probe_scored(self, probe: int, stable: float, canary: float) -> None:
        """Count the two answers to one held-out probe, 0 to 1 each."""
        self.probes.add(probe)
        self._add("score", False, stable)
        self._add("score", True, canary, probe)

    def _see_ttft(self, is_canary: bool, ttft_s: float | None) -> None:
        if ttft_s is None:
            return
        if self.slow_threshold_s is not None:
            self._add("slow", is_canary, float(ttft_s > self.slow_threshold_s))
        elif not is_canary:
            self._ttfts.append(ttft_s)
            self._fix_threshold()

    def _fix_threshold(self) -> None:
        """Once there are enough TTFTs of stable; it stays while the canary runs, also over a restart."""
        self.slow_threshold_s = _threshold_s(self._ttfts)
        if self.slow_threshold_s is not None:
            self._new.append(Pair("threshold", self.slow_threshold_s, self.slow_threshold_s))

    def _add(self, kind: Kind, is_canary: bool, value: float | None, probe: int | None = None) -> None:
        if value is None:
            return
        if not is_canary:
            self._streams[kind].stable_seen(value)
        elif (pair := self._streams[kind].canary_seen(value)) is not None:
            self._new.append(Pair(kind, *pair, probe))


def known_pairs(rows: Sequence[TrialPair]) -> list[Pair]:
    """What was written down of a trial; what a newer program may keep says nothing here."""
    return [Pair(_KINDS[row.kind], row.stable_value, row.canary_value, row.probe) for row in rows if row.kind in _KINDS]


def failure_of(record: RequestRecord) -> float | None:
    """1 where the version failed, 0 where it answered, None where it was not its doing or it never had the request."""
    generation = record.context.generation
    if record.outcome == "ok":
        return float(generation is not None and generation.outcome == "error")  # the stream ended in an error event
    if record.reason in (_REFUSED, _FAILED):
        return 1.0
    return 1.0 if record.reason == _TOO_LATE and generation is not None else None


def ttft_of(record: RequestRecord) -> float | None:
    """TTFT of an answered request, seconds; None also where it waited for a load, which is not the version's speed."""
    generation = record.context.generation
    if record.outcome != "ok" or record.context.is_cold or generation is None or generation.outcome != "ok":
        return None
    return generation.ttft_s


def _threshold_s(ttfts_s: Sequence[float]) -> float | None:
    """The 95th percentile; None of too few."""
    if len(ttfts_s) < MIN_TTFTS:
        return None
    return sorted(ttfts_s)[int(_SLOW_QUANTILE * (len(ttfts_s) - 1))]
