"""The log's lines: for people or for machines, one a request, and never a secret in them."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.observe.logs import JsonFormatter, log_request, logged_request, tenant_hash
from serve.records import AnsweredRequest, RequestContext
from tests.generations import generation
from tests.serving import Serving, make_serving
from tests.tracked_files import ROOT

SECRET_PROMPT = "my chest hurts"


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What was logged so far, as a machine reads it."""
    caplog.set_level("INFO")
    monkeypatch.setattr(caplog.handler, "formatter", JsonFormatter())
    return lambda: [json.loads(line) for line in caplog.text.splitlines()]


def request_lines(lines: Lines) -> list[dict[str, Any]]:
    return [line for line in lines() if "status" in line]


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SECRET_PROMPT}]} | more


@pytest.fixture
def token(tmp_path: Path) -> str:
    return create_key(tmp_path / "keys.json", KeyGrant(tenant="acme"), now=datetime.now(UTC)).token


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path, tmp_path: Path, token: str) -> Serving:
    assert token
    serving = make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    serving.publish("medical")
    return serving


@pytest.mark.anyio
async def test_a_request_leaves_one_line_that_says_who_what_and_how_long(
    serving: Serving, token: str, lines: Lines
) -> None:
    async with serving.client(token) as client:
        await client.post("/v1/chat/completions", json=chat("medical"), headers={"x-request-id": "r-1"})
    (line,) = request_lines(lines)
    assert line["request_id"] == "r-1"
    assert line["tenant"] == tenant_hash("acme")
    assert (line["adapter"], line["version"], line["endpoint"]) == ("medical", 1, "chat/completions")
    assert (line["status"], line["outcome"], line["reason"], line["is_cold"]) == (200, "ok", None, True)
    assert 0 < line["residency_s"] < line["duration_s"]
    assert 0 <= line["admission_s"] < line["duration_s"]


@pytest.mark.anyio
async def test_no_line_holds_the_key_or_the_prompt(serving: Serving, token: str, lines: Lines) -> None:
    async with serving.client(token) as client:
        await client.post("/v1/chat/completions", json=chat("medical"))
        await client.post("/v1/chat/completions", json=chat("medical", max_tokens=10**9))
    text = json.dumps(lines())
    assert len(request_lines(lines)) == 2
    assert token not in text
    assert SECRET_PROMPT not in text
    assert "acme" not in text


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_refused_request_says_why(serving: Serving, token: str, lines: Lines) -> None:
    async with serving.client(token) as client:
        await client.post("/v1/chat/completions", json=chat("legal"))
    (line,) = request_lines(lines)
    assert (line["status"], line["outcome"], line["reason"]) == (404, "client_error", "model_not_found")
    assert (line["adapter"], line["version"]) == (None, None)


@pytest.mark.anyio
async def test_a_load_says_for_which_request_it_was(serving: Serving, token: str, lines: Lines) -> None:
    async with serving.client(token) as client:
        await client.post("/v1/chat/completions", json=chat("medical"), headers={"x-request-id": "r-1"})
    (load,) = [line for line in lines() if line["message"].startswith("Loaded medical@1")]
    assert (load["request_id"], load["tenant"]) == ("r-1", tenant_hash("acme"))


def test_the_engines_times_and_tokens_are_in_the_line(lines: Lines) -> None:
    context = RequestContext("acme", "r-1")
    log_request(AnsweredRequest(context, "completions", "medical@3", "ok", 200, None, 1.05, generation()))
    (line,) = request_lines(lines)
    times = {name: line[name] for name in ("queue_s", "prefill_s", "decode_s", "ttft_s", "duration_s")}
    assert times == {"queue_s": 0.01, "prefill_s": 0.15, "decode_s": 0.6, "ttft_s": 0.2, "duration_s": 1.05}
    assert (line["num_prompt_tokens"], line["num_cached_tokens"], line["num_completion_tokens"]) == (40, 16, 12)
    assert line["message"] == "200 ok completions by medical@3 in 1.050 s, request r-1"


def test_a_line_that_is_written_for_a_request_says_which() -> None:
    reset = logged_request.set(RequestContext("acme", "r-1"))
    line = json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "Loaded %s", "args": ("medical@1",)})))
    logged_request.reset(reset)
    assert (line["message"], line["request_id"], line["tenant"]) == ("Loaded medical@1", "r-1", tenant_hash("acme"))


def test_an_exception_stays_within_its_line() -> None:
    error = ValueError("two\nlines")
    fields = {"msg": "Failed", "exc_info": (ValueError, error, None)}
    (text,) = JsonFormatter().format(logging.makeLogRecord(fields)).splitlines()
    assert json.loads(text)["exception"] == "ValueError: two\nlines"


def test_the_hash_of_a_tenant_is_the_documented_one() -> None:
    command = f"printf %s {'acme'} | sha256sum | cut -c 1-12"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == tenant_hash("acme")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_format", "pattern"),
    [("human", "INFO    root: 5 left\n"), ("json", '"level": "info", "logger": "root", "message": "5 left"}\n')],
)
def test_the_format_is_chosen_once_for_the_process(log_format: str, pattern: str) -> None:
    code = (
        "import logging; from serve.observe.logs import set_up_logging; "
        f"set_up_logging('info', {log_format!r}); logging.info('%d left', 5)"
    )
    assert logged(code).endswith(pattern)


@pytest.mark.slow
def test_vllms_processes_log_json_too() -> None:
    file = ROOT / "serve" / "engine" / "json_logging.json"
    code = (
        f"import json, logging.config; logging.config.dictConfig(json.load(open({str(file)!r})));"
        "logging.getLogger('vllm.engine').error('dead')"
    )
    assert json.loads(logged(code))["message"] == "dead"


def logged(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return finished.stderr
