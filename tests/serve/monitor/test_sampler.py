"""What becomes of clients' answers: figures of all, samples of a few, and nothing that the privacy mode forbids."""

import asyncio
import random
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.monitor import MonitorConfig
from quality.samples.privacy import tenant_hash
from quality.samples.store import QualityStore, Sample
from serve.monitor.sampler import Sampler, tenant_key
from serve.observe.metrics import ServeMetrics
from tests.clock import FakeClock
from tests.generations import generation
from tests.serve.observe.test_metrics import manifest

KEY = b"key"
TEXT = "Ask bob@example.com, +44 20 7946 0958"


class Watched:
    """A sampler whose thread is the test."""

    def __init__(self, store: QualityStore, *, most_queued: int = 1000, **config: Any) -> None:
        self.store, self.clock = store, FakeClock(6000.0)
        self.metrics = ServeMetrics(CollectorRegistry(), "tiny")
        self.sampler = Sampler(
            MonitorConfig.model_validate({"sample_rate": 1.0} | config),
            store,
            self.metrics,
            base_name="tiny",
            tenant_key=KEY,
            rng=random.Random(13),
            clock=self.clock,
            most_queued=most_queued,
        )

    def see(self, *records: Any, minutes: float = 0.0) -> "Watched":
        """Answers, then so many minutes."""
        for record in records:
            self.sampler.generation_finished(record)
            self.sampler.step()
        self.clock.now_s += 60.0 * minutes
        self.sampler.step()
        return self

    def samples(self, *records: Any) -> tuple[Sample, ...]:
        self.see(*records, minutes=1)
        return self.store.samples()

    def value(self, name: str, adapter: str = "medical", version: str = "3") -> float | None:
        return self.metrics.registry.get_sample_value(name, {"adapter": adapter, "version": version})

    def dropped(self, reason: str) -> float | None:
        return self.metrics.registry.get_sample_value("lorikeet_quality_dropped_total", {"reason": reason})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3", busy_timeout_s=0.1) as store:
        yield store


def test_a_sample_of_features_has_numbers_and_no_text(store: QualityStore) -> None:
    (sample,) = Watched(store).samples(generation())
    assert (sample.adapter, sample.version, sample.source, sample.privacy) == ("medical", 3, "client", "features")
    assert (sample.prompt, sample.answer, sample.request_id) == (None, None, None)
    assert (sample.num_prompt_tokens, sample.ttft_s, sample.e2e_s) == (40, 0.2, 1.0)
    assert (sample.signals.num_tokens, sample.signals.mean_logprob) == (12, -0.25)
    assert sample.tenant_hash == tenant_hash(KEY, "acme")


def test_no_text_and_no_tenant_reaches_the_disk_in_features_mode(store: QualityStore) -> None:
    secret = generation(prompt_text="mySecret", texts=("mySecret",), request_id="mySecret", tenant="mySecret")
    Watched(store).samples(secret)
    assert not any(b"mySecret" in file.read_bytes() for file in store.path.parent.iterdir())


def test_a_redacted_sample_has_text_without_what_patterns_find(store: QualityStore) -> None:
    (sample,) = Watched(store, privacy="redacted").samples(
        generation(prompt_text=TEXT, texts=(TEXT,), request_id="bob@example.com")
    )
    assert (sample.prompt, sample.answer) == ("Ask [EMAIL], [PHONE]",) * 2
    assert sample.request_id == "[EMAIL]"


def test_a_full_sample_has_all_of_it(store: QualityStore) -> None:
    (sample,) = Watched(store, privacy="full").samples(generation(prompt_text=TEXT))
    assert (sample.prompt, sample.answer, sample.request_id) == (TEXT, '{"chapter": "Neoplasms"}', "r-1")


def test_without_samples_there_are_figures_all_the_same(store: QualityStore) -> None:
    watched = Watched(store, privacy="none")
    assert watched.samples(generation()) == ()
    assert watched.value("lorikeet_answers_total") == 1


def test_the_base_is_version_0(store: QualityStore) -> None:
    watched = Watched(store)
    (sample,) = watched.samples(generation(None))
    assert (sample.adapter, sample.version) == ("tiny", 0)
    assert watched.value("lorikeet_answers_total", "tiny", "") == 1


@pytest.mark.parametrize(
    "changes", [{"source": "monitor"}, {"source": "shadow"}, {"outcome": "cancelled"}, {"outcome": "error"}]
)
def test_only_clients_whole_answers_count(store: QualityStore, changes: dict[str, Any]) -> None:
    watched = Watched(store)
    assert watched.samples(generation(**changes)) == ()
    assert watched.value("lorikeet_answers_total") is None


def test_figures_are_of_every_answer_samples_of_the_share_that_is_drawn(store: QualityStore) -> None:
    watched = Watched(store, sample_rate=0.25, reservoir=1000)
    samples = watched.samples(*[generation() for _ in range(400)])
    assert 70 < len(samples) < 130
    assert watched.value("lorikeet_answers_total") == 400
    assert watched.value("lorikeet_quality_samples_total") == len(samples)


def test_an_adapter_may_have_a_share_of_its_own(store: QualityStore) -> None:
    watched = Watched(store, rates={"legal": 0.0})
    samples = watched.samples(*[generation("legal@1") for _ in range(20)], generation())
    assert [sample.adapter for sample in samples] == ["medical"]


def test_a_busy_version_leaves_as_many_samples_a_minute_as_the_reservoir_holds(store: QualityStore) -> None:
    watched = Watched(store, reservoir=5)
    watched.see(*[generation() for _ in range(100)], generation("legal@1"), minutes=1)
    watched.see(*[generation() for _ in range(3)], minutes=1)
    assert len(store.samples("medical")) == 5 + 3
    assert len(store.samples("legal")) == 1


@pytest.mark.slow
def test_every_answer_of_a_minute_has_the_same_chance(store: QualityStore) -> None:
    watched = Watched(store, reservoir=10)
    for _ in range(60):
        watched.see(*[generation(num_prompt_tokens=number) for number in range(20)], minutes=1)
    times = Counter(sample.num_prompt_tokens for sample in store.samples())
    assert times.total() == 600
    assert set(times) == set(range(20))
    assert all(15 < drawn < 45 for drawn in times.values())  # of 60 minutes; half, and four standard deviations


def test_samples_wait_for_the_end_of_their_minute(store: QualityStore) -> None:
    watched = Watched(store).see(generation(), minutes=0.5)
    assert store.samples() == ()
    watched.see(minutes=0.5)
    assert len(store.samples()) == 1


def test_signals_feed_the_metrics(store: QualityStore) -> None:
    watched = Watched(store, sample_rate=0.0)
    answers = ("I cannot help with that.", "no no no no no no no no no", "Neoplasms")
    watched.see(*[generation(texts=(text,)) for text in answers], generation(token_logprobs=()))
    assert watched.value("lorikeet_answers_total") == 4
    assert watched.value("lorikeet_answers_refused_total") == 1
    assert watched.value("lorikeet_answers_repetitive_total") == 1
    assert watched.value("lorikeet_answer_mean_logprob_count") == 3


def test_the_format_and_the_agreed_refusal_come_from_the_manifest(store: QualityStore) -> None:
    rules = {"refusal": "out of scope", "answer_pattern": "[A-Z].*"}
    watched = Watched(store)
    watched.metrics.adapter_loaded(manifest(answer_schema=None, quality=rules), 1.0, None)
    samples = watched.samples(*[generation(texts=(text,)) for text in ("Neoplasms", "out of scope")])
    assert [sample.signals.is_valid_format for sample in samples] == [True, False]
    assert [sample.signals.is_refusal for sample in samples] == [False, True]


def test_an_answer_that_finds_the_queue_full_is_dropped_and_counted(store: QualityStore) -> None:
    watched = Watched(store, most_queued=2)
    for _ in range(5):
        watched.sampler.generation_finished(generation())
    assert watched.dropped("full") == 3
    assert len(watched.samples()) == 2


def test_a_store_that_fails_is_counted_and_traffic_goes_on(store: QualityStore) -> None:
    watched = Watched(store)
    watched.see(generation())
    store.close()
    watched.see(minutes=1)
    assert watched.dropped("failed") == 1
    watched.see(generation())
    assert watched.value("lorikeet_answers_total") == 2


def test_retention_is_kept_by_who_writes(store: QualityStore) -> None:
    watched = Watched(store, retention_days=1.0)
    watched.see(generation(), minutes=1)
    assert len(store.samples()) == 1
    watched.see(minutes=60 * 24 + 1)
    assert store.samples() == ()


DAY_MINUTES = 60 * 24


@pytest.mark.parametrize("does_start_anew", [False, True])
def test_a_clock_that_jumps_forward_deletes_nothing_at_once(store: QualityStore, *, does_start_anew: bool) -> None:
    watched = Watched(store)
    watched.see(generation(), minutes=1)
    now_s = watched.clock.now_s
    if does_start_anew:
        watched = Watched(store)
    watched.clock.now_s = now_s + 400 * 86_400.0
    watched.see(generation(), minutes=1)
    watched.see(minutes=61)
    assert len(store.samples()) == 2
    watched.clock.now_s = now_s
    watched.see(generation(), minutes=120)
    assert len(store.samples()) == 3


@pytest.mark.slow
def test_after_a_long_pause_retention_is_kept_within_a_day_or_two(store: QualityStore) -> None:
    watched = Watched(store)
    watched.see(generation(), minutes=1)
    watched.see(minutes=400 * DAY_MINUTES)
    for _ in range(48):
        watched.see(minutes=61)
    assert store.samples() == ()


def test_a_clock_that_goes_back_loses_no_sample(store: QualityStore) -> None:
    watched = Watched(store)
    watched.see(generation())
    watched.clock.now_s -= 3000.0
    watched.see(generation(), minutes=1)
    assert len(store.samples()) == 2


@pytest.mark.anyio
async def test_what_is_queued_is_written_when_the_server_stops(store: QualityStore) -> None:
    watched = Watched(store)
    running = asyncio.create_task(watched.sampler.run())
    await asyncio.sleep(0)
    for _ in range(3):
        watched.sampler.generation_finished(generation())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(store.samples()) == 3


def test_the_tenants_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "quality.key"
    first = tenant_key(path)
    assert len(first) == 32
    assert tenant_key(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
