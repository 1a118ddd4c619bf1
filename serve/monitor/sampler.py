"""Measure every client answer for the metrics, and store a share of them as samples.

The event loop only draws and puts into a bounded queue. A thread computes signals, redacts, and writes once a minute
what the minute's reservoirs hold; it also deletes what retention no longer allows.
"""

import logging
import os
import queue
import random
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from config.monitor import PRIVACIES_WITH_TEXT, MonitorConfig
from quality.samples.privacy import id_hash, kept_text, tenant_hash
from quality.samples.records import Turn
from quality.samples.store import QualityStore, Sample
from quality.signals import Signals, signals_of
from serve.background import watch_thread
from serve.clock import is_within, steady_time
from serve.errors import RateLimitedError
from serve.monitor.feedback import FeedbackWriter, GivenFeedback, TakenFeedback
from serve.monitor.protocol import MonitorMetrics
from serve.records import GenerationRecord, Source

logger = logging.getLogger(__name__)

_PERIOD_S = 60.0
_PRUNE_S = 3600.0
_WAKE_S = 1.0
_MAX_QUEUED = 1000
_MAX_AT_ONCE = 100
_DAY_S = 86_400.0
_PLAUSIBLE_S = 2 * _DAY_S
"""Between two prunings. More is a server that was off for long, or a clock that jumped."""
_RETRY_AFTER_S = 5.0
_STEPS = 24
"""Prunings until all samples may be gone where a clock jumped."""


class _Answer(NamedTuple):
    """What the event loop hands over; `is_drawn` to become a sample."""

    at_s: float
    record: GenerationRecord
    is_valid_format: bool | None
    is_drawn: bool


class _Said(NamedTuple):
    """Feedback; queued behind the answers before it, so that the one that it is about is known."""

    feedback: GivenFeedback
    taken: Future[TakenFeedback]


@dataclass
class _Reservoir:
    """A uniform draw of at most `most` among those offered (Vitter 1985, algorithm R)."""

    most: int
    samples: list[Sample] = field(default_factory=list)
    num_offered: int = 0

    def place(self, rng: random.Random) -> int | None:
        """Where the next one offered goes; None where it does not."""
        self.num_offered += 1
        if len(self.samples) < self.most:
            return len(self.samples)
        place = rng.randrange(self.num_offered)
        return place if place < self.most else None


class Sampler:
    """An observer of generations, and the thread behind it.

    Args:
        tenant_key: What tenants' names are hashed with.
    """

    def __init__(
        self,
        config: MonitorConfig,
        store: QualityStore,
        metrics: MonitorMetrics,
        *,
        base_name: str,
        tenant_key: bytes,
        rng: random.Random | None = None,
        clock: Callable[[], float] = steady_time,
        most_queued: int = _MAX_QUEUED,
    ) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._base_name = base_name
        self._tenant_key = tenant_key
        self._rng = rng or random.Random()
        self._clock = clock
        self._queue: queue.Queue[_Answer | _Said | None] = queue.Queue(most_queued)
        self._writer = FeedbackWriter(store, config.privacy, tenant_key, clock)
        self._reservoirs: dict[tuple[int, str, str], _Reservoir] = defaultdict(lambda: _Reservoir(config.reservoir))
        self._pruned_at_s = float("-inf")

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        """No action is needed."""

    def generation_finished(self, record: GenerationRecord) -> None:
        """Hand a client's whole answer to the thread; dropped and counted where the thread is behind."""
        if record.source not in ("client", "batch") or record.outcome != "ok" or not record.texts:
            return
        valid = self._metrics.answers.valid_format(record)
        is_drawn = self._config.privacy != "none" and self._rng.random() < self._config.rate_of(self._labels(record)[0])
        try:
            self._queue.put_nowait(_Answer(self._clock(), record, valid[0] if valid else None, is_drawn))
        except queue.Full:
            self._metrics.quality.answers_dropped("full")

    def give_feedback(self, feedback: GivenFeedback) -> Future[TakenFeedback]:
        """Hand a user's feedback to the thread. The future raises `ServeError`, or `QualityStoreError`.

        Raises:
            RateLimitedError: The thread is behind.
        """
        if 2 * self._queue.qsize() >= self._queue.maxsize:  # the other half is for answers
            raise RateLimitedError("Too much waits to be stored. Send it again.", _RETRY_AFTER_S, "feedback")
        said = _Said(feedback, Future())
        self._queue.put_nowait(said)
        return said.taken

    async def run(self) -> None:
        """Work until cancelled, then write what is there."""
        await watch_thread(self._work, lambda: self._queue.put(None), "quality-sampler")

    def step(self, wait_s: float = 0.0) -> bool:
        """Look at what has come, write the minutes that are over; False once it is told to stop."""
        answers, is_stopped = self._take(wait_s)
        try:
            for answer in answers:
                if isinstance(answer, _Said):
                    self._hear(answer)
                else:
                    self._look(answer)
            self._write(all_of_them=is_stopped)
            self._prune()
        except Exception as error:  # the thread's boundary: a full disk, a broken pattern; traffic goes on
            self._metrics.failures.note("sampler", error, f"The quality monitor lost up to {len(answers)} answers")
            self._metrics.quality.answers_dropped("failed", max(1, len(answers)))
        return not is_stopped

    def _work(self) -> None:
        while self.step(_WAKE_S):
            pass

    def _take(self, wait_s: float) -> tuple[list[_Answer | _Said], bool]:
        """What is queued, at most so many; and whether the end was among them."""
        answers: list[_Answer | _Said] = []
        try:
            while len(answers) < _MAX_AT_ONCE:
                answer = self._queue.get(timeout=wait_s) if wait_s and not answers else self._queue.get_nowait()
                if answer is None:
                    return answers, True
                answers.append(answer)
        except queue.Empty:
            pass
        return answers, False

    def _look(self, answer: _Answer) -> None:
        record = answer.record
        signals = signals_of(
            record.texts[0],
            num_tokens=len(record.token_ids),
            finish_reason=record.finish_reasons[0] if record.finish_reasons else None,
            token_logprobs=record.token_logprobs,
            refusal=self._metrics.answers.refusal(record.lora_name),
        )
        adapter, version = self._labels(record)
        signals = replace(signals, is_valid_format=answer.is_valid_format)
        self._metrics.quality.answer_seen(adapter, version, signals)
        if answer.is_drawn:
            reservoir = self._reservoirs[int(answer.at_s // _PERIOD_S), adapter, version]
            place = reservoir.place(self._rng)
            if place is not None:
                reservoir.samples[place : place + 1] = [self._sample(answer, signals)]

    def _hear(self, said: _Said) -> None:
        if not said.taken.set_running_or_notify_cancel():
            return
        try:
            taken = self._writer.write(said.feedback, self._find)
            version = str(taken.version) if taken.version else ""
            self._metrics.quality.feedback_taken(taken.adapter, version, taken.kind)
            said.taken.set_result(taken)
        except Exception as error:  # boundary: whoever gave it is told, and the next answer is looked at
            said.taken.set_exception(error)

    def _find(self, id_hash: str) -> Sample | None:
        """The sample of a request or an answer; one that waits for the end of its minute is stored at once."""
        for reservoir in self._reservoirs.values():
            for place, sample in enumerate(reservoir.samples):
                if id_hash in (sample.request_hash, sample.response_hash):
                    if not sample.id:
                        sample = replace(sample, id=self._store.add_sample(sample))
                        reservoir.samples[place] = sample
                    return sample
        return self._store.sample_of(id_hash)

    def _sample(self, answer: _Answer, signals: Signals) -> Sample:
        """The sample, as far as the privacy mode allows. Request ids count as text: clients choose them."""
        record, privacy = answer.record, self._config.privacy
        adapter, version = self._labels(record)
        return Sample(
            id=0,
            at_s=answer.at_s,
            request_id=kept_text(record.request_id, privacy) if record.request_id is not None else None,
            adapter=adapter,
            version=int(version or 0),
            tenant_hash=None if record.tenant is None else tenant_hash(self._tenant_key, record.tenant),
            source=record.source,
            privacy=privacy,
            num_prompt_tokens=record.num_prompt_tokens,
            ttft_s=record.ttft_s,
            e2e_s=record.e2e_s,
            signals=signals,
            prompt=kept_text(record.prompt_text, privacy),
            answer=kept_text(record.texts[0], privacy),
            messages=self._kept_turns(record),
            request_hash=self._id_hash(record, record.request_id),
            response_hash=self._id_hash(record, record.response_id),
        )

    def _kept_turns(self, record: GenerationRecord) -> tuple[Turn, ...]:
        texts = [kept_text(turn.content, self._config.privacy) for turn in record.messages]
        turns = zip(record.messages, texts, strict=True)
        return tuple(Turn(turn.role, text) for turn, text in turns if text is not None)

    def _id_hash(self, record: GenerationRecord, given_id: str | None) -> str | None:
        if given_id is None or record.tenant is None or self._config.privacy not in PRIVACIES_WITH_TEXT:
            return None
        return id_hash(self._tenant_key, record.tenant, given_id)

    def _write(self, *, all_of_them: bool) -> None:
        """The reservoirs of minutes that are over, in one transaction."""
        now = int(self._clock() // _PERIOD_S)
        over = [key for key in self._reservoirs if all_of_them or key[0] != now]  # a clock may go back
        if not over:
            return
        reservoirs = {key: self._reservoirs.pop(key) for key in over}
        every = [sample for reservoir in reservoirs.values() for sample in reservoir.samples]
        self._store.add_samples([sample for sample in every if not sample.id])
        for (_, adapter, version), reservoir in reservoirs.items():
            self._metrics.quality.samples_kept(adapter, version, len(reservoir.samples))

    def _prune(self) -> None:
        now_s = self._clock()
        if is_within(now_s, self._pruned_at_s, _PRUNE_S):
            return
        self._pruned_at_s = now_s
        before_s = self._retention_time_s(now_s) - self._config.retention_days * _DAY_S
        gone = self._store.prune(before_s, self._config.most_samples)
        if gone:
            logger.info("Deleted %d samples: older than %g days, or too many", gone, self._config.retention_days)

    def _retention_time_s(self, now_s: float) -> float:
        """The clock's time, or where that is days ahead of the last one, a step towards it.

        A clock that is wrong deletes nothing at once: there is a day to put it right.
        """
        last_s = self._store.retention_time_s()
        if last_s is not None and now_s - last_s > _PLAUSIBLE_S:
            logger.warning("The clock is %.0f days ahead of retention, which follows.", (now_s - last_s) / _DAY_S)
            now_s = min(now_s, last_s + self._config.retention_days * _DAY_S / _STEPS)
        self._store.set_retention_time(now_s)
        return now_s

    def _labels(self, record: GenerationRecord) -> tuple[str, str]:
        """Adapter and version; the base has none."""
        adapter, _, version = (record.lora_name or self._base_name).partition("@")
        return adapter, version


def tenant_key(path: Path) -> bytes:
    """The key of tenants' hashes, made at first use; only its owner may read it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(os.urandom(32))
    try:
        os.link(made, path)  # unlike a rename, it leaves the key of a server that was faster
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_bytes()
