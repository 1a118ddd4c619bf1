"""On the real engine, a canary that answers worse goes by itself, and one that answers as well takes stable's place."""

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.peft_folder import WEIGHTS_FILE
from adapters.reference import Target
from adapters.store.history import Event
from adapters.store.manifest import ManifestDraft, QualityRules
from adapters.store.version_files import MAX_BYTES
from quality.held_out import HeldOutMessage, HeldOutQuestion, HeldOutSet, write_held_out
from quality.metrics.settings import PlainMetric
from quality.samples.records import Grade
from quality.samples.store import QualityStore
from tests.judged_server import JudgedServer
from tests.live_server import ANSWERS, BASE_NAME, LiveServer, chat, client
from tests.otlp_collector import Taken

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

NAME = "colours-trial"
STABLE, BAD, GOOD = 1, 2, 3
NUM_CLIENTS = 6
LONGEST_S = 800.0  # it takes an eighth of that on a fast CPU; requests come as fast as the server answers
RULES = QualityRules(margin=0.3, max_error_increase=0.3, max_slow_increase=0.4, min_pairs=10)
"""Wide limits, for a verdict within one or two minutes on two cores."""
HELD_OUT = HeldOutSet(
    metric=PlainMetric(name="json_fields"),
    max_tokens=12,
    stop=("}",),
    questions=tuple(
        HeldOutQuestion(
            messages=(
                HeldOutMessage(role="system", content="Answer about colours in JSON."),
                HeldOutMessage(role="user", content=f"What is number {number} of the colours?"),
            ),
            expected=ANSWERS["colours"],
        )
        for number in range(300, 360)
    ),
)


@dataclass
class Traffic:
    """Answers so far, by version."""

    num_answers: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.num_answers.values())


@pytest.fixture(scope="module")
def versions(judged: JudgedServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A trained version, a copy with noise in its weights and an equal one, with held-out questions and wide limits."""
    live = judged
    source = live.store.folder(Target("colours", 1))
    fields = live.store.manifest(Target("colours", 1)).model_dump(include=set(ManifestDraft.model_fields))
    draft = ManifestDraft.model_validate(fields | {"name": NAME, "quality": RULES})
    for version in (STABLE, BAD, GOOD):
        folder = tmp_path_factory.mktemp("trial")
        for name in (name for name in MAX_BYTES if (source / name).is_file()):
            shutil.copyfile(source / name, folder / name)
        write_held_out(HELD_OUT, folder)
        if version == BAD:
            add_noise(folder)
        assert live.store.publish(folder, draft).version == version
    live.store.promote(NAME, STABLE)


def add_noise(folder: Path) -> None:
    """Weights that nobody trained; without the fingerprint, which would give them away before their first answer."""
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / WEIGHTS_FILE)
    noisy = {
        name: tensor + 4 * tensor.std() * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in tensors.items()
    }
    save_file(noisy, folder / WEIGHTS_FILE)
    (folder / FINGERPRINT_FILE).unlink()


async def ask_until(http: httpx.AsyncClient, is_over: asyncio.Event, traffic: Traffic) -> None:
    while not is_over.is_set():
        response = await http.post("/v1/chat/completions", json=chat(NAME))
        assert response.status_code == 200, response.text
        version = response.headers["x-lorikeet-adapter"]
        traffic.num_answers[version] = traffic.num_answers.get(version, 0) + 1


async def ask_until_decided(live: LiveServer, canary: int) -> tuple[Event, Traffic, float]:
    """Put a version on trial under traffic, and wait for the event that ends it."""
    begun_s, traffic, is_over = time.monotonic(), Traffic({}), asyncio.Event()
    live.store.set_aliases(NAME, {"canary": canary}, canary_weight=0.5)
    num_events = len(live.store.history(NAME))
    async with client(live) as http, asyncio.TaskGroup() as tasks:
        for _ in range(NUM_CLIENTS):
            tasks.create_task(ask_until(http, is_over, traffic))
        while len(live.store.history(NAME)) == num_events and time.monotonic() - begun_s < LONGEST_S:
            await asyncio.sleep(0.1)
        is_over.set()
    events = live.store.history(NAME)[num_events:]
    assert events, f"no verdict after {traffic.total} answers"
    return events[0], traffic, time.monotonic() - begun_s


def say(capsys: pytest.CaptureFixture[str], what: str, event: Event, traffic: Traffic, seconds: float) -> None:
    figures = event.figures or {}
    with capsys.disabled():
        print(
            f"\n{what} after {traffic.total} requests ({traffic.num_answers}), {figures['score_pairs']:.0f} pairs of "
            f"questions, {seconds:.1f} s: {event.reason}"
        )


async def test_a_bad_canary_is_rolled_back_by_itself(
    judged: JudgedServer, versions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    event, traffic, seconds = await ask_until_decided(judged, BAD)
    say(capsys, "a bad canary was rolled back", event, traffic, seconds)
    assert (event.kind, event.alias, event.version, event.previous) == ("rolled_back", "canary", STABLE, BAD)
    assert event.reason.startswith("canary score")
    async with client(judged) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=chat(NAME, user=f"user-{number}")) for number in range(12))
        )
    assert {answer.headers["x-lorikeet-adapter"] for answer in answers} == {f"{NAME}@{STABLE}"}


async def test_a_canary_that_answers_as_well_is_promoted_by_itself(
    judged: JudgedServer, versions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    event, traffic, seconds = await ask_until_decided(judged, GOOD)
    say(capsys, "a good canary was promoted", event, traffic, seconds)
    assert (event.kind, event.alias, event.version, event.previous) == ("promoted", "stable", GOOD, STABLE)
    async with client(judged) as http:
        metrics = (await http.get("/metrics")).text
        answer = await http.post("/v1/chat/completions", json=chat(NAME))
    assert f'lorikeet_verdicts_total{{action="promote",adapter="{NAME}",version="{GOOD}"}} 1.0' in metrics
    assert f'lorikeet_held_out_live_accuracy{{adapter="{NAME}",version="{GOOD}"}}' in metrics
    assert answer.headers["x-lorikeet-adapter"] == f"{NAME}@{GOOD}"


async def test_the_base_grades_the_answers_meanwhile(judged: JudgedServer) -> None:
    """A small model under a schema alone would write reasons until its tokens are over; see `reply_pattern`."""
    async with client(judged) as http:
        await asyncio.gather(*(http.post("/v1/chat/completions", json=chat(NAME)) for _ in range(4)))
    deadline = time.monotonic() + 120
    grades: tuple[Grade, ...] = ()
    with QualityStore(judged.home.quality) as store:
        while not (grades := store.grades(NAME)) and time.monotonic() < deadline:
            await asyncio.sleep(1)
    assert grades
    assert all(0 <= grade.score <= 1 and grade.reason for grade in grades)
    assert all(grade.judge.startswith(BASE_NAME) for grade in grades)


async def test_scores_grades_and_verdicts_reach_a_collector(judged: JudgedServer) -> None:
    """Of the trials before; log records are sent every second."""
    taken, deadline = judged.taken, time.monotonic() + 30
    while {"json_fields", "judge", "canary_verdict"} - set(names_of(taken)) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    assert {"json_fields", "judge", "canary_verdict"} <= set(names_of(taken))
    assert {record.event_name for record in taken.log_records} == {"gen_ai.evaluation.result"}
    spans = {span.span_id for span in taken.spans}
    grades = [
        record for record in taken.log_records if any(at.value.string_value == "judge" for at in record.attributes)
    ]
    assert any(record.span_id in spans for record in grades)


def names_of(taken: Taken) -> list[str]:
    return [
        at.value.string_value
        for record in taken.log_records
        for at in record.attributes
        if at.key == "gen_ai.evaluation.name"
    ]
