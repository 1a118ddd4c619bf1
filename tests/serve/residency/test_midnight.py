"""Trained on one day, served on another: what a fingerprint compares does not depend on the day."""

import asyncio
import shutil
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.bases import read_base
from adapters.fingerprint import FINGERPRINT_FILE, Fingerprint, read_fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from adapters.template_time import noon
from config.home import Home
from quality.drift import Exchange
from quality.held_out import HeldOutSet, write_held_out
from quality.samples.store import QualityStore
from serve.errors import AdapterRefusedError
from serve.monitor.drift import DriftMonitor
from serve.observe.metrics import ServeMetrics
from serve.residency.template_time import Renderings, find_time
from tests.dated_engine import DatedEngine
from tests.fake_engine import fingerprint
from tests.generations import generation
from tests.peft_folders import draft_for
from tests.serving import Serving, make_serving
from tests.tiny_llama import (
    CHAT_TEMPLATE,
    DATED_TEMPLATE,
    prepare_tiny_base,
    tiny_domain,
    write_colour_data,
    write_tiny_llama,
)
from train.pipeline import train_and_publish

pytestmark = pytest.mark.anyio

TRAINED_ON = date(2026, 11, 28)
NEXT_DAY, NEXT_YEAR = datetime(2026, 11, 29, 0, 0, 1), datetime(2027, 5, 1, 8)
COLOURS = Target("colours", 1)
USER_TURNS = [{"role": "user", "content": text} for text in ("a rose", "violets")]
QUESTION = [{"role": "system", "content": "Colour?"}, {"role": "user", "content": "a rose"}]


@dataclass
class Published:
    home: Home
    fingerprint: Fingerprint

    def served_on(self, today: datetime, chat_template: str = DATED_TEMPLATE) -> Serving:
        engine = DatedEngine(today, chat_template)
        engine.golden = self.fingerprint
        return make_serving(AdapterStore(self.home.adapters), self.home.bases / "tiny", engine=engine)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """One version, by the whole pipeline, on a base whose template writes the date."""
    root = tmp_path_factory.mktemp("midnight")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model", DATED_TEMPLATE))
    domain = tiny_domain(write_colour_data(root / "colours.jsonl"), max_steps=1)
    train_and_publish(domain, home, today=lambda: TRAINED_ON)
    fingerprint = read_fingerprint(AdapterStore(home.adapters).folder(COLOURS))
    assert fingerprint is not None
    return Published(home, fingerprint)


def publish_changed(published: Published, folder: Path, name: str, **changes: object) -> Target:
    """The version again, with another fingerprint."""
    store = AdapterStore(published.home.adapters)
    shutil.copytree(store.folder(COLOURS), folder)
    folder.chmod(0o755)
    for file in ("manifest.json", FINGERPRINT_FILE):
        (folder / file).unlink()
    (folder / FINGERPRINT_FILE).write_text(published.fingerprint.model_copy(update=changes).model_dump_json())
    base = read_base(published.home.bases / "tiny").ref
    return Target(name, store.publish(folder, draft_for(folder, name, base=base)).version)


@pytest.mark.slow
def test_a_version_keeps_the_date_of_its_golden_prompts(published: Published) -> None:
    manifest = AdapterStore(published.home.adapters).verify(COLOURS)
    assert manifest.training is not None
    assert published.fingerprint.template_time == manifest.training.template_time == datetime(2026, 11, 28, 12)
    assert "2026-11-28" in (AdapterStore(published.home.adapters).folder(COLOURS) / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("today", [NEXT_DAY, NEXT_YEAR])
async def test_a_version_is_loaded_on_any_later_day(published: Published, today: datetime) -> None:
    serving = published.served_on(today)
    await serving.residency.load(COLOURS)
    assert await serving.golden_replay().check(COLOURS)


@pytest.mark.slow
async def test_a_request_still_gets_the_date_of_today(published: Published) -> None:
    engine = published.served_on(NEXT_YEAR).engine
    assert engine.render(QUESTION) == engine.render(QUESTION, NEXT_YEAR) != engine.render(QUESTION, NEXT_DAY)


@pytest.mark.slow
async def test_an_older_fingerprint_without_a_time_is_compared_but_for_the_date(
    published: Published, tmp_path: Path
) -> None:
    older = publish_changed(published, tmp_path / "older", "older", template_time=None)
    await published.served_on(NEXT_YEAR).residency.load(older)
    with pytest.raises(AdapterRefusedError, match="turns a golden prompt into other tokens"):
        await published.served_on(NEXT_YEAR, DATED_TEMPLATE.replace("Date:", "Today:")).residency.load(older)
    with pytest.raises(AdapterRefusedError, match="turns a golden prompt into other tokens"):
        await published.served_on(NEXT_YEAR, CHAT_TEMPLATE).residency.load(older)


@pytest.mark.slow
async def test_another_time_than_the_kept_one_is_refused(published: Published, tmp_path: Path) -> None:
    other = publish_changed(published, tmp_path / "other", "other", template_time=NEXT_DAY)
    with pytest.raises(AdapterRefusedError, match="turns a golden prompt into other tokens"):
        await published.served_on(NEXT_DAY).residency.load(other)


def test_tokens_are_of_another_time_only_where_nothing_else_differs() -> None:
    engine = DatedEngine(NEXT_DAY)
    renderings = Renderings.of(engine, QUESTION)
    golden = engine.render(QUESTION)
    assert renderings.is_of_another_time(golden)
    assert not renderings.is_of_another_time(engine.render([*QUESTION, QUESTION[1]]))
    assert not renderings.is_of_another_time(golden[:-1])
    assert not renderings.is_of_another_time(golden[:8])
    plain = DatedEngine(NEXT_DAY, CHAT_TEMPLATE)
    assert not Renderings.of(plain, QUESTION).is_of_another_time(plain.render(QUESTION))


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        DATED_TEMPLATE,
        CHAT_TEMPLATE.replace("assistant\n", "assistant\n[{{ strftime_now('%H:%M on %A, %d.%m.%y') }}]\n"),
        "{{ strftime_now('%d %b %Y, %H:%M UTC') }} " + CHAT_TEMPLATE,
        "{% if strftime_now is defined %}Now: {{ strftime_now('%c') }}; {% endif %}" + CHAT_TEMPLATE,
    ],
)
def test_what_the_template_writes_for_the_time_is_cut_out_of_any_prompt(template: str) -> None:
    engine = DatedEngine(NEXT_DAY, template)
    found = find_time(engine, [QUESTION])
    assert found is not None
    other = [{"role": "system", "content": "Another"}, {"role": "user", "content": "question " * 9}]
    days = [datetime(2026, 1, 1, 3) + timedelta(days=day, minutes=41 * day) for day in range(366)]
    assert len({found.cut(engine.render(other, day)) for day in days}) == 1
    assert len(found.cut(engine.render(other))) < len(engine.render(other))
    assert found.cut((1, 2, 3)) == (1, 2, 3)


def test_a_template_without_the_time_has_nothing_to_cut() -> None:
    assert find_time(DatedEngine(NEXT_DAY, CHAT_TEMPLATE), [QUESTION]) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE + "{{ strftime_now('%d') }}|",
        CHAT_TEMPLATE + "{{ strftime_now('%Y') }}",
        "{{ strftime_now('%B') }}{{ messages[-1].content }}|",
    ],
)
def test_a_time_that_cannot_be_cut_is_told(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template writes the time in more than one place, or"):
        find_time(DatedEngine(NEXT_DAY, template), [QUESTION, [QUESTION[0], {"role": "user", "content": "violets"}]])


@pytest.mark.slow
async def test_another_template_is_still_refused(published: Published) -> None:
    other = DATED_TEMPLATE.replace("Date:", "Today:")
    with pytest.raises(AdapterRefusedError, match="turns a golden prompt into other tokens"):
        await published.served_on(NEXT_DAY, other).residency.load(COLOURS)


@dataclass
class Traffic:
    """Answers of one version over some days, looked at by a drift monitor."""

    folder: Path
    engine: DatedEngine

    async def drifted(self, *, is_new: bool = False) -> tuple[set[str], set[str]]:
        """The features that were looked at, and those that drifted, in forty answers of the days after training."""
        question = "a {} or a {}?" if not is_new else "Which of {} is not {}, and why is that so?"
        write_held_out(HeldOutSet(max_tokens=8, baseline=tuple(map(self._asked, map(str, range(60))))), self.folder)
        metrics = ServeMetrics(CollectorRegistry(), "base")
        with QualityStore(self.folder / f"quality-{is_new}.sqlite3") as store:
            monitor = DriftMonitor(
                lambda _: self.folder, store, metrics, partial(find_time, self.engine), window=40, alpha=0.01
            )
            for number in range(40):
                self.engine.today = NEXT_DAY + timedelta(days=number)
                seen = self._asked(question.format(number, number + 1) if is_new else str(number))
                monitor.generation_finished(
                    generation(
                        prompt_token_ids=seen.prompt_tokens,
                        token_ids=seen.completion_tokens,
                        token_logprobs=(-0.1,) * 2,
                    )
                )
            looking = asyncio.create_task(monitor.run())
            async with asyncio.timeout(30):
                while not (looks := store.drift_checks("medical", 3)):
                    await asyncio.sleep(0.001)
            looking.cancel()
        names = {name.partition(":")[0] for name in looks[0].figures if name.endswith(": p")}
        return names, {name for name in names if name in looks[0].reason and looks[0].is_drift}

    def _asked(self, text: str) -> Exchange:
        prompt = tuple(self.engine.render([QUESTION[0], {"role": "user", "content": f"Is it {text}"}]))
        return Exchange(prompt_tokens=prompt, completion_tokens=(200, 201), mean_logprob=-0.1)


def traffic(folder: Path, template: str) -> Traffic:
    golden = fingerprint("b" * 64, "t" * 64)
    prompts = tuple(golden.prompts[0].model_copy(update={"messages": (QUESTION[0], turn)}) for turn in USER_TURNS)
    written = golden.model_copy(update={"template_time": noon(TRAINED_ON), "prompts": prompts})
    (folder / FINGERPRINT_FILE).write_text(written.model_dump_json())
    return Traffic(folder, DatedEngine(noon(TRAINED_ON), template))


async def test_the_date_in_a_prompt_is_no_drift_and_other_questions_are(tmp_path: Path) -> None:
    features, drifted = await traffic(tmp_path, DATED_TEMPLATE).drifted()
    assert features >= {"prompt length", "prompt surprisal"}
    assert drifted == set()
    assert "prompt length" in (await traffic(tmp_path, DATED_TEMPLATE).drifted(is_new=True))[1]


async def test_prompts_that_the_date_moves_in_several_places_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = DATED_TEMPLATE + "Today is {{ strftime_now('%A') }}.\n"
    features, drifted = await traffic(tmp_path, template).drifted()
    assert "prompt surprisal" not in features
    assert drifted == set()
    said = "Drift of medical@3 is measured in answers only, because the date moves its prompts: "
    assert f"{said}the chat template writes the time in" in caplog.text
