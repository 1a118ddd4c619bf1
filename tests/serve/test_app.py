"""The HTTP surface: which routes there are, what they answer, and every error in OpenAI's shape."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from tests.serving import BASE_NAME, COMPLETION_SCOPE, JSON, Serving, chat, make_serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/adapters", "/invocations", "/pause", "/tokenize"])
async def test_management_routes_of_vllm_do_not_exist(serving: Serving, path: str) -> None:
    async with serving.client() as client:
        response = await client.post(path, json={})
    assert response.status_code == 404
    assert path in response.json()["error"]["message"]


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses"])
async def test_an_alias_is_answered_by_the_version_it_points_to(serving: Serving, endpoint: str) -> None:
    manifest = serving.publish("medical")
    async with serving.client() as client:
        response = await client.post(f"/v1/{endpoint}", json=chat("medical"))
    assert response.json() == {"model": "medical@1", "endpoint": endpoint}
    assert response.headers["x-lorikeet-adapter"] == "medical@1"
    assert response.headers["x-lorikeet-digest"] == manifest.digest
    assert response.headers["x-lorikeet-cold"] == "1"
    assert response.headers["x-request-id"]


async def test_a_second_request_finds_the_adapter_warm(serving: Serving) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json=chat("medical"))
        response = await client.post("/v1/chat/completions", json=chat("medical@1"))
    assert response.headers["x-lorikeet-cold"] == "0"
    assert serving.engine.loads == ["medical@1"]


async def test_the_base_model_is_answered_under_its_served_name(serving: Serving) -> None:
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat(BASE_NAME))
    assert response.json()["model"] == BASE_NAME
    assert serving.engine.loads == []


async def test_a_rollback_sends_the_next_request_to_the_previous_version(serving: Serving) -> None:
    serving.publish("support")
    serving.publish("support")
    serving.store.rollback("support", reason="error rate 0.12 > 0.05")
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat("support"))
    assert response.json()["model"] == "support@1"


async def test_a_stream_is_passed_on_event_by_event(serving: Serving) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat("medical", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == 'data: {"model": "medical@1"}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("model", ["nobody", "nobody@3", "medical@9", "medical@gold", "../etc", "A B", "x" * 5000])
async def test_an_unknown_model_is_a_404_and_never_reaches_the_engine(serving: Serving, model: str) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat(model))
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert len(error["message"]) < 200
    assert (serving.engine.bodies, serving.engine.loads) == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 300, "nested too deeply"),
        (b"[1]", "must be a JSON object, not list"),
        (b"{}", "`model` must name"),
        (b'{"model": 7}', "`model` must name"),
        (b'{"model": ""}', "`model` must name"),
    ],
)
async def test_a_body_that_is_no_request_is_a_400_that_says_why(serving: Serving, content: bytes, message: str) -> None:
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_a_body_over_the_limit_is_refused(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_body_bytes=1024)
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat(BASE_NAME, padding="x" * 2000))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "body_too_large")
    assert "this server accepts at most 1024" in error["message"]


async def test_a_refused_adapter_is_a_422_with_its_reason_and_others_go_on(serving: Serving) -> None:
    serving.publish("legal")
    serving.engine.load_error = "rank 512 is too high"
    async with serving.client() as client:
        refused = await client.post("/v1/chat/completions", json=chat("legal"))
        serving.engine.load_error = None
        serving.publish("medical")
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
    assert refused.status_code == 422
    assert "rank 512 is too high" in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "adapter_refused"
    assert answered.status_code == 200


async def test_requests_before_the_engine_is_ready_are_503(serving: Serving) -> None:
    serving.engine.is_ready = False
    async with serving.client() as client:
        completion = await client.post("/v1/chat/completions", json=chat(BASE_NAME))
        ready, health = await client.get("/ready"), await client.get("/health")
    assert (completion.status_code, ready.status_code, health.status_code) == (503, 503, 200)
    assert completion.json()["error"]["code"] == "not_ready"


async def awaits_what_is_cancelled(*_: Any, **__: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def breaks(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secret /path/of/the/server")


class Panic(BaseException):
    """As libraries written in Rust raise it."""


async def panics(*_: Any, **__: Any) -> Any:
    raise Panic


@pytest.mark.parametrize("broken", [breaks, awaits_what_is_cancelled, panics])
@pytest.mark.parametrize("part", ["answer", "lease"])
async def test_a_bug_ends_its_request_and_holds_nothing(
    serving: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, part: str, broken: Any
) -> None:
    serving.publish("medical")
    monkeypatch.setattr(serving.engine if part == "answer" else serving.residency, part, broken)
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat("medical"), headers={"x-request-id": "r-7"})
    assert response.status_code == 500
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"] == "r-7"
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if "Unexpected error in request r-7" in record.message]
    assert record.exc_info is not None
    labels = {"adapter": "medical", "version": "1", "endpoint": "chat/completions", "outcome": "server_error"}
    assert serving.metrics.registry.get_sample_value("lorikeet_requests_total", labels) == 1
    assert [resident.in_flight for resident in serving.residency.residents.values()] in ([], [0])
    assert not serving.parts.completions._gate.admission.is_busy()


async def test_a_bug_in_a_stream_is_an_error_event_and_an_end(serving: Serving) -> None:
    serving.publish("medical")
    serving.engine.failure = RuntimeError("secret /path/of/the/server")
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat("medical", stream=True))
    *_, event, end, _ = response.text.split("\n\n")
    assert '"type": "server_error"' in event
    assert end == "data: [DONE]"
    assert "secret" not in response.text
    labels = {"adapter": "medical", "version": "1", "reason": "server_error"}
    assert serving.metrics.registry.get_sample_value("lorikeet_rejections_total", labels) == 1
    assert [resident.in_flight for resident in serving.residency.residents.values()] == [0]


async def test_a_client_that_leaves_cancels_its_work(serving: Serving) -> None:
    serving.engine.never_answers = True
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b'{"model": "tiny-base"}', "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await serving.engine.answering.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    await serving.app(dict(COMPLETION_SCOPE), receive, send)
    await asyncio.sleep(0)
    assert serving.engine.was_cancelled


async def test_an_answer_that_takes_too_long_is_a_504_and_holds_nothing(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, request_timeout_s=0.3)
    serving.publish("medical")
    serving.engine.never_answers = True
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", json=chat("medical"))
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert serving.engine.was_cancelled
    assert [resident.in_flight for resident in serving.residency.residents.values()] == [0]


async def test_a_client_that_leaves_before_its_body_is_read_is_no_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    await serving.app(dict(COMPLETION_SCOPE), receive, send)
    labels = {"adapter": "", "version": "", "endpoint": "chat/completions", "outcome": "cancelled"}
    assert serving.metrics.registry.get_sample_value("lorikeet_requests_total", labels) == 1
    assert caplog.text == ""


async def test_models_lists_the_base_the_aliases_and_the_versions(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("medical", promote=False)
    serving.store.promote("medical", 2, "canary")
    async with serving.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        one = (await client.get("/v1/models/medical@canary")).json()
        none = await client.get("/v1/models/nobody")
    assert [(card["id"], card["root"]) for card in listed] == [
        (BASE_NAME, BASE_NAME),
        ("medical@canary", "medical@2"),
        ("medical", "medical@1"),
        ("medical@1", "medical@1"),
        ("medical@2", "medical@2"),
    ]
    assert one["root"] == "medical@2"
    assert none.status_code == 404


async def test_the_engine_starts_and_stops_with_the_application(serving: Serving) -> None:
    serving.engine.is_ready = False
    async with serving.app.router.lifespan_context(serving.app):
        await asyncio.sleep(0.01)
        assert serving.engine.is_ready
        assert serving.metrics.registry.get_sample_value("lorikeet_ready") == 1
    assert not serving.engine.is_ready


async def test_metrics_count_requests_by_adapter_version_and_outcome(serving: Serving) -> None:
    serving.publish("medical")
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json=chat("medical"))
        await client.post("/v1/chat/completions", json=chat("medical", stream=True))
        await client.post("/v1/chat/completions", json=chat("nobody"))
        text = (await client.get("/metrics")).text
    labels = 'adapter="medical",endpoint="chat/completions",outcome="ok",version="1"'
    assert f"lorikeet_requests_total{{{labels}}} 2.0" in text
    assert 'adapter="",endpoint="chat/completions",outcome="client_error",version=""} 1.0' in text
    assert "nobody" not in text
