"""A version that computes what is not finite: never loaded, or quarantined; nobody else is."""

import json
import math
from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.store.store import AdapterStore
from serve.errors import AdapterRefusedError, BaseNotFiniteError, NotFiniteError, QuarantinedError
from tests.fake_engine import BASE_LOGPROBS
from tests.generations import generation
from tests.peft_folders import draft_for, write_peft_folder
from tests.serving import BASE_NAME, Serving, chat, make_serving

pytestmark = pytest.mark.anyio

MEDICAL = Target("medical", 1)
LABELS = {"adapter": "medical", "version": "1"}
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    serving = make_serving(store, base_folder)
    serving.publish("medical")
    serving.publish("legal")
    return serving


def publish_imported(serving: Serving) -> Target:
    folder = write_peft_folder(serving.store.root.parent / "imported")
    base = serving.store.manifest(MEDICAL).base
    return Target("imported", serving.store.publish(folder, draft_for(folder, "imported", base=base)).version)


def value(serving: Serving, name: str, **labels: str) -> float | None:
    return serving.metrics.registry.get_sample_value(name, LABELS | labels)


async def quarantine(serving: Serving) -> None:
    """As the engine's observer is told."""
    serving.residency.quarantine.generation_finished(generation("medical@1", outcome="error", is_finite=False))
    await serving.residency.quarantine.saved()


@pytest.mark.parametrize("wrong", NOT_FINITE)
async def test_a_version_with_such_a_log_probability_is_refused_for_good(serving: Serving, wrong: float) -> None:
    serving.engine.adapter_logprobs = (-0.5, wrong)
    for _ in range(2):
        with pytest.raises(AdapterRefusedError, match="'medical@1' computes values that are not finite"):
            await serving.residency.lease(MEDICAL)
    assert (serving.engine.loads, serving.engine.resident) == (["medical@1"], set())
    assert value(serving, "lorikeet_adapter_refusals_total", check="finite") == 1


@pytest.mark.parametrize("wrong", NOT_FINITE)
async def test_an_imported_version_is_asked_too(serving: Serving, wrong: float) -> None:
    imported = publish_imported(serving)
    serving.engine.adapter_logprobs = (-0.5, wrong)
    with pytest.raises(AdapterRefusedError, match="'imported@1' computes values that are not finite"):
        await serving.residency.lease(imported)


async def test_an_imported_version_is_asked_several_prompts_once(serving: Serving) -> None:
    imported = publish_imported(serving)
    serving.engine.loaded_digest = "as packed"
    await serving.residency.load(imported)
    asked = serving.engine.replays
    assert asked >= 4
    await serving.residency.unload(imported)
    await serving.residency.load(imported)
    assert serving.engine.replays == asked


@pytest.mark.parametrize("is_imported", [True, False])
async def test_where_the_base_is_not_finite_no_version_is_to_blame(serving: Serving, *, is_imported: bool) -> None:
    target = publish_imported(serving) if is_imported else MEDICAL
    serving.engine.base_logprobs = serving.engine.adapter_logprobs = (math.nan, math.nan)
    with pytest.raises(BaseNotFiniteError):
        await serving.residency.lease(target)
    assert serving.engine.resident == set()
    serving.engine.base_logprobs, serving.engine.adapter_logprobs = BASE_LOGPROBS, (-0.5, -0.25)
    await serving.residency.load(target)


@pytest.mark.slow
async def test_a_quarantined_version_answers_422_and_others_answer(serving: Serving) -> None:
    await quarantine(serving)
    async with serving.client() as client:
        refused = await client.post("/v1/chat/completions", json=chat("medical"))
        others = [await client.post("/v1/chat/completions", json=chat(model)) for model in ("legal", BASE_NAME)]
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["code"] == "adapter_refused"
    assert "'medical@1' is quarantined: it computed values that are not finite" in error["message"]
    assert [answer.status_code for answer in others] == [200, 200]


async def test_a_quarantine_is_shown_and_one_call_lifts_it(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    await quarantine(serving)
    assert "medical@1 is quarantined: it computed values that are not finite" in caplog.text
    assert value(serving, "lorikeet_adapter_quarantined") == 1
    async with serving.client() as client:
        rows = (await client.get("/admin/adapters")).json()["adapters"]
        assert {row["adapter"]: bool(row["quarantine"]) for row in rows} == {"legal@1": False, "medical@1": True}
        lifted = await client.post("/admin/adapters/medical@1/unquarantine")
        assert lifted.json() == {"adapter": "medical@1", "done": "unquarantine"}
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
        rows = (await client.get("/admin/adapters")).json()["adapters"]
    assert answered.status_code == 200
    assert [row["quarantine"] for row in rows] == [None, None]
    assert value(serving, "lorikeet_adapter_quarantined") == 0


async def test_a_quarantine_is_lifted_while_the_engine_is_away(serving: Serving) -> None:
    await quarantine(serving)
    serving.engine.is_ready = False
    async with serving.client() as client:
        assert (await client.post("/admin/adapters/medical@1/unquarantine")).status_code == 200
    assert serving.store.quarantined("medical") == {}


async def test_another_server_and_the_next_start_keep_it(serving: Serving, base_folder: Path) -> None:
    await quarantine(serving)
    other = make_serving(serving.store, base_folder)
    with pytest.raises(QuarantinedError, match="medical@1"):
        await other.residency.lease(MEDICAL)
    assert value(other, "lorikeet_adapter_quarantined") == 1


async def test_what_the_store_cannot_keep_this_server_does(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    target = Target("gone", 1)  # as where the version was removed meanwhile
    serving.residency.quarantine.add(target)
    await serving.residency.quarantine.saved()
    with pytest.raises(QuarantinedError, match="gone@1"):
        await serving.residency.lease(target)
    assert "ends with this process" in caplog.text


async def test_a_damaged_file_takes_nothing_out_of_service(serving: Serving) -> None:
    (serving.store.root / "medical" / "quarantine.json").write_text("[")
    async with serving.client() as client:
        rows = (await client.get("/admin/adapters")).json()["adapters"]
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
        lifted = await client.post("/admin/adapters/medical@1/unquarantine")
    assert [row["quarantine"] for row in rows] == [None, None]
    assert answered.status_code == 200
    assert (lifted.status_code, "Delete it" in lifted.json()["error"]["message"]) == (409, True)


async def test_an_answer_of_the_base_quarantines_nobody(serving: Serving) -> None:
    serving.residency.quarantine.generation_finished(generation(None, outcome="error", is_finite=False))
    serving.residency.quarantine.generation_finished(generation("medical@1"))
    assert serving.store.quarantined("medical") == {}
    await serving.residency.load(MEDICAL)


@pytest.mark.parametrize("source", ["client", "shadow", "monitor"])
async def test_every_such_generation_is_counted(serving: Serving, source: str) -> None:
    record = generation("medical@1", outcome="error", is_finite=False, source=source)
    serving.metrics.generation_finished(record)
    assert value(serving, "lorikeet_not_finite_generations_total") == 1


async def test_golden_replay_sees_it(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    await serving.residency.load(MEDICAL)
    serving.engine.adapter_logprobs = (math.nan, -0.25)
    assert not await serving.golden_replay().check(MEDICAL)
    await serving.residency.quarantine.saved()
    assert value(serving, "lorikeet_golden_replays_total", outcome="wrong") == 1
    assert "no longer gives its own answers" in caplog.text
    assert list(serving.store.quarantined("medical")) == [1]


async def test_golden_replay_passes_over_what_is_quarantined(serving: Serving) -> None:
    for target in (MEDICAL, Target("legal", 1)):
        await serving.residency.load(target)
    await quarantine(serving)
    replay = serving.golden_replay()
    assert [replay._next() for _ in range(2)] == [Target("legal", 1)] * 2


async def test_golden_replay_of_such_a_base_quarantines_nobody(serving: Serving) -> None:
    await serving.residency.load(MEDICAL)
    serving.engine.base_logprobs = (math.nan, -4.0)
    assert not await serving.golden_replay().check(MEDICAL)
    assert serving.store.quarantined("medical") == {}


async def test_an_answer_that_fails_names_the_version(serving: Serving) -> None:
    serving.engine.failure = NotFiniteError("medical@1")
    async with serving.client() as client:
        whole = await client.post("/v1/chat/completions", json=chat("medical"))
        stream = await client.post("/v1/chat/completions", json=chat("medical", stream=True))
    assert (whole.status_code, whole.json()["error"]["code"]) == (422, "adapter_refused")
    began, failed, done, _ = stream.text.split("\n\n")
    assert began == 'data: {"model": "medical@1"}'
    assert "'medical@1' computes values" in json.loads(failed.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
    labels = {"endpoint": "chat/completions"}
    assert value(serving, "lorikeet_requests_total", outcome="client_error", **labels) == 2
    assert value(serving, "lorikeet_requests_total", outcome="ok", **labels) is None
