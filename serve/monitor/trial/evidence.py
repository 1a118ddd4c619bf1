"""Evidence of one trial of stable and canary, in the form that `quality.verdict` takes. No clock, no I/O.

Clients' requests are aggregated by user, because the split assigns users: `quality.users` has the rule, and
`RequestContext.sticky_key` the key. Requests that name a version were not assigned and do not count. Shadow copies and
held-out questions are put to both versions, so they are paired one by one.

Only pairs are stored. A restarted server resumes the trial from them and counts no user twice. The number of unpaired
observations is bounded, however uneven the traffic.
"""

from collections import deque
from collections.abc import Sequence
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

from adapters.reference import Target
from quality.samples.privacy import user_hash
from quality.samples.records import TrialPair
from quality.users import MAX_REQUESTS, UserMean, UserMeans
from quality.verdict import Evidence, Observation
from serve.records import AnsweredRequest, GenerationRecord

MIN_TTFTS = 20
"""Minimum number of stable's TTFTs for the threshold of slowness."""

_SLOW_QUANTILE = 0.95
_MAX_UNUSED = 1000
_MAX_PAIRS = 20_000

Kind = Literal["score", "error", "slow", "copy", "threshold"]
ByUser = Literal["error", "slow"]
_BY_USER: tuple[ByUser, ...] = ("error", "slow")
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}

# A refused version is its own fault; a 503, a 429 or a wrong request is not.
_REFUSED, _FAILED, _TOO_LATE = "adapter_refused", "server_error", "deadline_exceeded"

ObservedT = TypeVar("ObservedT")


class ObservedPair(NamedTuple):
    """One observation of each version: for scores the held-out question, for requests the hashes of both users.

    "copy" is an error, or none, of a request and of a shadow's copy. "threshold": when a TTFT is slow, twice.
    """

    kind: Kind
    stable: float
    canary: float
    question: int | None = None
    stable_user: str | None = None
    canary_user: str | None = None
    num_requests: int = 1


class PairedStream(Generic[ObservedT]):
    """Observations of one kind in order of arrival, paired as by `quality.verdict.pair_in_time`."""

    def __init__(
        self,
        pairs: Sequence[tuple[ObservedT, ObservedT]] = (),
        *,
        most_unused: int = _MAX_UNUSED,
        most_pairs: int = _MAX_PAIRS,
    ) -> None:
        self.unused: tuple[deque[ObservedT], deque[ObservedT]] = (deque(maxlen=most_unused), deque(maxlen=most_unused))
        self._most_pairs = most_pairs
        self.pairs = list(pairs)
        """(stable, canary), at most `most_pairs`: more would not change the verdict."""

    def stable_seen(self, value: ObservedT) -> tuple[ObservedT, ObservedT] | None:
        """Add an observation. Returns the pair that it completes, if any."""
        return self._seen(value, 0)

    def canary_seen(self, value: ObservedT) -> tuple[ObservedT, ObservedT] | None:
        """Add an observation. Returns the pair that it completes, if any."""
        return self._seen(value, 1)

    def _seen(self, value: ObservedT, side: int) -> tuple[ObservedT, ObservedT] | None:
        if len(self.pairs) >= self._most_pairs:
            return None
        if not self.unused[1 - side]:
            self.unused[side].append(value)
            return None
        other = self.unused[1 - side].pop()
        self.pairs.append((other, value) if side else (value, other))
        return self.pairs[-1]


class UserStream:
    """Requests of one kind: each user counts once, paired with a user of the other version."""

    def __init__(self, known: Sequence[tuple[UserMean, UserMean]] = ()) -> None:
        self._stream = PairedStream(known)
        self._means = UserMeans(mean.user for pair in known for mean in pair)

    @property
    def num_counted(self) -> int:
        """Number of counted users; grows with each new one."""
        return 2 * len(self._stream.pairs) + sum(map(len, self._stream.unused))

    def add(
        self, is_canary: bool, user: str, at_s: float, value: float, max_requests: int
    ) -> list[tuple[UserMean, UserMean]]:
        """Add a request. Returns the pairs that it completes."""
        pairs = self.close_due(at_s)
        if (mean := self._means.add(user, is_canary, at_s, value, max_requests)) is not None:
            pairs += self._paired([mean])
        return pairs

    def close_due(self, now_s: float) -> list[tuple[UserMean, UserMean]]:
        """Count users whose collection time has ended. Returns the pairs that they complete."""
        return self._paired(self._means.close_due(now_s))

    def observations(self, side: int, first: int = 0) -> list[Observation]:
        """Observations of stable (0) or the canary (1), including unpaired ones, which count only as users.

        Their times are consecutive numbers from `first`: `decide` uses only the order.
        """
        means = [pair[side] for pair in self._stream.pairs] + list(self._stream.unused[side])
        return [
            Observation(float(number), mean.value, mean.user, mean.num_requests)
            for number, mean in enumerate(means, first)
        ]

    def _paired(self, means: Sequence[UserMean]) -> list[tuple[UserMean, UserMean]]:
        stream = self._stream
        seen = [stream.canary_seen(mean) if mean.is_canary else stream.stable_seen(mean) for mean in means]
        return [pair for pair in seen if pair is not None]


class TrialEvidence:
    """An observer of one trial's requests and held-out scores.

    Args:
        ttfts_before: TTFTs of stable before the canary, seconds. If there are too few, stable's first ones during the
            trial set the threshold and do not count otherwise.
        known: Pairs of the trial from earlier processes.
        user_key: Key of the users' hashes.
    """

    def __init__(
        self,
        stable: Target,
        canary: Target,
        ttfts_before: Sequence[float] = (),
        known: Sequence[ObservedPair] = (),
        user_key: bytes = b"",
    ) -> None:
        self._names = str(stable), str(canary)
        self._ttfts = list(ttfts_before)
        self._user_key = user_key
        self._new: list[ObservedPair] = []
        self.slow_threshold_s = next((pair.stable for pair in known if pair.kind == "threshold"), None)
        if self.slow_threshold_s is None:
            self._fix_threshold()
        once = {pair.question: pair for pair in reversed(known) if pair.question is not None}
        self._scores = PairedStream(
            [(pair.stable, pair.canary) for pair in known if pair.question is not None and once[pair.question] is pair]
        )
        self._copies = PairedStream([(pair.stable, pair.canary) for pair in known if pair.kind == "copy"])
        self._users = {kind: UserStream(_known_users(known, kind)) for kind in _BY_USER}
        self.questions = set(once)
        """Indices of the held-out questions that both have answered."""

    @property
    def num_seen(self) -> int:
        """Number of observations; grows with each new one."""
        users = sum(stream.num_counted for stream in self._users.values())
        return len(self._scores.pairs) + len(self._copies.pairs) + users

    def take_new(self) -> list[ObservedPair]:
        """New pairs since the last call, to be stored."""
        new, self._new = self._new, []
        return new

    def give_back(self, pairs: list[ObservedPair]) -> None:
        """Return pairs that could not be stored; the next `take_new` has them again."""
        self._new = pairs + self._new

    def close_due(self, now_s: float) -> None:
        """Count the users whose collection time has ended."""
        for kind, stream in self._users.items():
            self._note(kind, stream.close_due(now_s))

    def evidence(self) -> tuple[Evidence, Evidence]:
        """Evidence of stable, and of the canary."""
        stable, canary = (
            Evidence(
                scores=tuple(_numbered(self._scores, side)),
                errors=(
                    *_numbered(self._copies, side),
                    *self._users["error"].observations(side, len(self._copies.pairs)),
                ),
                slow=tuple(self._users["slow"].observations(side)),
            )
            for side in (0, 1)
        )
        return stable, canary

    def request_finished(self, record: AnsweredRequest, at_s: float) -> None:
        """Count a client's request that the split assigned to one of the two versions.

        Args:
            at_s: Seconds, on the clock of `close_due`.
        """
        name = record.served_name
        if name not in self._names or record.context.sticky_key is None:
            return
        is_canary = name == self._names[1]
        failure, ttft_s = failure_of(record), ttft_of(record)
        if failure is not None:
            self._add("error", is_canary, record, at_s, failure)
            if not is_canary:
                self._pair_copies(False, failure)
        if ttft_s is not None:
            self._see_ttft(is_canary, record, at_s, ttft_s)

    def generation_finished(self, record: GenerationRecord) -> None:
        """Count a shadow copy's error or success; its TTFT means nothing, because it waits behind all clients."""
        is_copy = record.source == "shadow" and record.lora_name == self._names[1]
        if is_copy and record.outcome in ("ok", "error"):
            self._pair_copies(True, float(record.outcome == "error"))

    def question_scored(self, question: int, stable: float, canary: float) -> None:
        """Count the two answers to one held-out question, 0 to 1 each."""
        self.questions.add(question)
        self._scores.stable_seen(stable)
        if (pair := self._scores.canary_seen(canary)) is not None:
            self._new.append(ObservedPair("score", *pair, question))

    def _see_ttft(self, is_canary: bool, record: AnsweredRequest, at_s: float, ttft_s: float) -> None:
        if self.slow_threshold_s is not None:
            self._add("slow", is_canary, record, at_s, float(ttft_s > self.slow_threshold_s))
        elif not is_canary:
            self._ttfts.append(ttft_s)
            self._fix_threshold()

    def _fix_threshold(self) -> None:
        """Set the threshold once there are enough TTFTs of stable; it stays fixed during the trial, across restarts."""
        self.slow_threshold_s = _threshold_s(self._ttfts)
        if self.slow_threshold_s is not None:
            self._new.append(ObservedPair("threshold", self.slow_threshold_s, self.slow_threshold_s))

    def _add(self, kind: ByUser, is_canary: bool, record: AnsweredRequest, at_s: float, value: float) -> None:
        """Count a request; an anonymous one is a user of its own and counts at once."""
        key = record.context.sticky_key
        assert key is not None
        most = 1 if key == record.context.request_id else MAX_REQUESTS
        self._note(kind, self._users[kind].add(is_canary, user_hash(self._user_key, key), at_s, value, most))

    def _pair_copies(self, is_canary: bool, failure: float) -> None:
        pair = self._copies.canary_seen(failure) if is_canary else self._copies.stable_seen(failure)
        if pair is not None:
            self._new.append(ObservedPair("copy", *pair))

    def _note(self, kind: ByUser, pairs: Sequence[tuple[UserMean, UserMean]]) -> None:
        for stable, canary in pairs:
            num_requests = min(stable.num_requests, canary.num_requests)
            self._new.append(
                ObservedPair(kind, stable.value, canary.value, None, stable.user, canary.user, num_requests)
            )


def known_pairs(rows: Sequence[TrialPair]) -> list[ObservedPair]:
    """Stored pairs of a trial, without kinds that only a newer program knows."""
    return [
        ObservedPair(
            _KINDS[row.kind],
            row.stable_value,
            row.canary_value,
            row.question,
            row.stable_user,
            row.canary_user,
            row.num_requests,
        )
        for row in rows
        if row.kind in _KINDS
    ]


def _known_users(known: Sequence[ObservedPair], kind: Kind) -> list[tuple[UserMean, UserMean]]:
    """Pairs of users, each user once: two servers may have counted the same one; old rows have no users."""
    pairs: list[tuple[UserMean, UserMean]] = []
    seen: set[str] = set()
    for pair in known:
        stable, canary, num = pair.stable_user, pair.canary_user, pair.num_requests
        if pair.kind == kind and stable is not None and canary is not None and not seen & {stable, canary}:
            seen |= {stable, canary}
            pairs.append((UserMean(stable, False, pair.stable, num), UserMean(canary, True, pair.canary, num)))
    return pairs


def _numbered(stream: PairedStream[float], side: int) -> list[Observation]:
    """Paired observations, each as that of a separate user."""
    return [Observation(float(number), pair[side], f"pair {number}") for number, pair in enumerate(stream.pairs)]


def failure_of(record: AnsweredRequest) -> float | None:
    """1 if the version failed, 0 if it answered, None if something else failed or it never got the request."""
    generation = record.generation
    if record.outcome == "ok":
        return float(generation is not None and generation.outcome == "error")  # the stream ended in an error event
    if record.reason in (_REFUSED, _FAILED):
        return 1.0
    return 1.0 if record.reason == _TOO_LATE and generation is not None else None


def ttft_of(record: AnsweredRequest) -> float | None:
    """TTFT of an answered request, seconds; None if it says nothing about the version: after a load, or of a batch."""
    generation = record.generation
    if record.context.is_cold or record.context.source == "batch":
        return None
    if record.outcome != "ok" or generation is None or generation.outcome != "ok":
        return None
    return generation.ttft_s


def _threshold_s(ttfts_s: Sequence[float]) -> float | None:
    """The 95th percentile; None if there are too few."""
    if len(ttfts_s) < MIN_TTFTS:
        return None
    return sorted(ttfts_s)[int(_SLOW_QUANTILE * (len(ttfts_s) - 1))]
