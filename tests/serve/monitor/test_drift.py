"""Windows of a version's traffic against its baseline: what counts, what is stored, exported and said."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from quality.drift import Exchange
from quality.held_out import HeldOutSet, write_held_out
from quality.samples.store import QualityStore
from serve.monitor.drift import DriftMonitor
from serve.observe.metrics import ServeMetrics
from serve.residency.template_time import find_time
from tests.fake_engine import FakeEngine, fingerprint
from tests.generations import generation

pytestmark = pytest.mark.anyio

WINDOW = 20
LABELS = {"adapter": "medical", "version": "3"}
END = 5
"""What `fake_engine.fingerprint` calls the end of an answer."""


def exchange(number: int) -> Exchange:
    """Prompts and answers of lengths that vary with the number."""
    return Exchange(
        prompt_tokens=tuple(range(100, 110 + number % 7)),
        completion_tokens=tuple(range(200, 204 + number % 5)),
        mean_logprob=-0.2 - 0.01 * (number % 9),
    )


@dataclass
class Watched:
    """A monitor with the parts to look into."""

    folder: Path
    store: QualityStore
    metrics: ServeMetrics
    monitor: DriftMonitor

    def answer(self, numbers: range, *, end: tuple[int, ...] = (), **changes: Any) -> None:
        """Finish generations that look like the baseline's, but for `changes`."""
        for number in numbers:
            seen = exchange(number)
            assert seen.mean_logprob is not None
            fields: dict[str, Any] = {
                "prompt_token_ids": seen.prompt_tokens,
                "token_ids": (*seen.completion_tokens, *end),
                "token_logprobs": (seen.mean_logprob,) * (len(seen.completion_tokens) + len(end)),
            }
            self.monitor.generation_finished(generation(**(fields | changes)))

    async def settle(self, num_checks: int) -> None:
        """Run until so many drift checks are stored."""
        running = asyncio.create_task(self.monitor.run())
        try:
            async with asyncio.timeout(30):
                while self.store.last_drift_check("medical", 3) < num_checks:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.01)  # what is exported follows what is stored
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    def gauge(self, feature: str) -> float | None:
        return self.metrics.registry.get_sample_value("lorikeet_drift", LABELS | {"feature": feature})


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    stores = []

    def make(*, has_baseline: bool = True) -> Watched:
        folder = tmp_path / "3"
        folder.mkdir(exist_ok=True)
        (folder / "fingerprint.json").write_text(fingerprint("b" * 64, "t" * 64).model_dump_json())
        if has_baseline:
            write_held_out(HeldOutSet(max_tokens=8, baseline=tuple(exchange(11 * n) for n in range(60))), folder)
        store, metrics = QualityStore(tmp_path / "quality.sqlite3"), ServeMetrics(CollectorRegistry(), "base")
        stores.append(store)
        monitor = DriftMonitor(
            lambda _: folder,
            store,
            metrics,
            partial(find_time, FakeEngine()),
            window=WINDOW,
            alpha=0.01,
            clock=lambda: 1234.5,
        )
        return Watched(folder, store, metrics, monitor)

    yield make
    for store in stores:
        store.close()


async def test_traffic_like_the_baseline_is_looked_at_and_is_no_drift(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch()
    watched.answer(range(2 * WINDOW))
    await watched.settle(2)
    (first, second) = watched.store.drift_checks("medical", 3)
    assert {first.number, second.number} == {1, 2}
    assert (first.at_s, first.num_exchanges, first.is_drift) == (1234.5, WINDOW, False)
    assert first.figures["prompt length: mean"] == pytest.approx(13, abs=0.5)
    assert watched.gauge("prompt length") == 0
    assert watched.metrics.registry.get_sample_value("lorikeet_drift_checks_total", LABELS) == 2
    assert "has drifted" not in caplog.text


@pytest.mark.slow
async def test_other_prompts_are_drift_and_one_line_says_when_it_begins(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch()
    watched.answer(range(WINDOW))
    watched.answer(range(2 * WINDOW), prompt_token_ids=tuple(range(300, 360)))
    await watched.settle(3)
    checks = sorted(watched.store.drift_checks("medical", 3), key=lambda check: check.number)
    assert [check.is_drift for check in checks] == [False, True, True]
    assert watched.gauge("prompt length") == 1
    assert watched.gauge("answer length") == 0
    (line,) = [record for record in caplog.records if "has drifted" in record.message]
    assert line.levelno == logging.WARNING
    assert "medical@3 has drifted (drift check 2): prompt length is 60 on average" in line.message


async def test_drift_that_goes_is_no_longer_exported(watch: Callable[..., Watched]) -> None:
    watched = watch()
    watched.answer(range(WINDOW), prompt_token_ids=tuple(range(300, 360)))
    watched.answer(range(WINDOW))
    await watched.settle(2)
    assert watched.gauge("prompt length") == 0


@pytest.mark.slow
async def test_a_restart_goes_on_counting_looks_and_does_not_tell_again(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    before = watch()
    before.answer(range(2 * WINDOW), prompt_token_ids=tuple(range(300, 360)))
    await before.settle(2)
    before.store.close()
    caplog.clear()
    after = watch()
    after.answer(range(WINDOW), prompt_token_ids=tuple(range(300, 360)))
    await after.settle(3)
    assert [check.number for check in after.store.drift_checks("medical", 3)] == [1, 2, 3]
    assert after.gauge("prompt length") == 1
    assert "has drifted" not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [{"source": "shadow"}, {"source": "monitor"}, {"outcome": "cancelled"}, {"outcome": "error"}, {"lora_name": None}],
    ids=lambda changes: str(*changes.values()),
)
async def test_only_whole_answers_of_adapters_to_clients_count(
    watch: Callable[..., Watched], changes: dict[str, Any]
) -> None:
    watched = watch()
    watched.answer(range(WINDOW), prompt_token_ids=(7,) * 60, **changes)
    watched.answer(range(WINDOW))
    await watched.settle(1)
    assert watched.gauge("prompt length") == 0
    assert len(watched.store.drift_checks("medical", 3)) == 1


async def test_an_answer_that_goes_on_to_the_models_own_end_is_no_drift(watch: Callable[..., Watched]) -> None:
    watched = watch()
    watched.answer(range(WINDOW), end=(END,))
    await watched.settle(1)
    (check,) = watched.store.drift_checks("medical", 3)
    assert check.figures["answer length: mean"] == check.figures["answer length: mean at publish"] == 6


async def test_answers_without_log_probabilities_are_judged_by_the_rest(watch: Callable[..., Watched]) -> None:
    watched = watch()
    watched.answer(range(WINDOW), token_logprobs=())
    await watched.settle(1)
    assert watched.gauge("answer length") == 0
    assert watched.gauge("mean log-probability") is None


async def test_a_version_without_a_baseline_says_so_once_and_gathers_nothing(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch(has_baseline=False)
    caplog.set_level(logging.INFO)
    running = asyncio.create_task(watched.monitor.run())
    for _ in range(3):
        watched.answer(range(WINDOW))
        await asyncio.sleep(0.05)
    running.cancel()
    assert [record.message for record in caplog.records if "baseline" in record.message] == [
        "Drift of medical@3 is not measured: it was published without a baseline"
    ]
    assert watched.store.drift_checks("medical", 3) == ()


async def test_a_baseline_that_cannot_be_read_stops_no_other_look(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch()
    whole = (watched.folder / "held_out.json").read_text()
    (watched.folder / "held_out.json").write_text("{")
    running = asyncio.create_task(watched.monitor.run())
    watched.answer(range(WINDOW))
    async with asyncio.timeout(30):
        while "Checking medical@3 for drift failed" not in caplog.text:
            await asyncio.sleep(0.001)
    running.cancel()
    (watched.folder / "held_out.json").write_text(whole)
    watched.answer(range(WINDOW))
    await watched.settle(1)
    assert watched.gauge("prompt length") == 0


async def test_windows_that_nobody_looks_at_are_dropped_and_not_gathered_for_ever(
    watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch()
    watched.answer(range(9 * WINDOW))
    assert "medical@3: 20 exchanges are dropped" in caplog.text
