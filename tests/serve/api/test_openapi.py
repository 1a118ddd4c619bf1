"""What `/openapi.json` says is what the server does: for data as described, for other data, and without a key."""

import copy
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import requests
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance
from starlette.types import Message

from adapters.store.store import AdapterStore
from config.limits import RequestLimits
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.api.openapi import completion_body
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError
from serve.limits.limits import check_limits
from tests.peft_folders import write_base_folder
from tests.serving import BASE_NAME, COMPLETION_SCOPE, JSON, Serving, make_serving
from tests.tracked_files import ROOT

ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions", "responses")
FEEDBACK = [("POST", "/v1/feedback")]
COMPLETIONS = [("POST", f"/v1/{endpoint}") for endpoint in ENDPOINTS]
MOVES = [("POST", "/admin/aliases/{name}"), ("POST", "/admin/aliases/{name}/rollback")]
JOB = "/v1/fine_tuning/jobs/{fine_tuning_job_id}"
FORMS = [("POST", "/v1/files"), ("POST", "/v1/uploads/{upload_id}/parts")]
CREATED = [
    ("POST", "/v1/uploads"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/batches"),
]
JOBS = [
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("POST", "/v1/uploads/{upload_id}/cancel"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("GET", JOB),
    *(("POST", f"{JOB}/{action}") for action in ("cancel", "pause", "resume")),
    ("GET", f"{JOB}/events"),
    ("GET", f"{JOB}/checkpoints"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{batch_id}"),
    ("POST", "/v1/batches/{batch_id}/cancel"),
    ("DELETE", "/v1/models/{reference}"),
]
NAMED = [
    *JOBS,
    ("GET", "/v1/models/{reference}"),
    ("GET", "/v1/responses/{response_id}"),
    ("POST", "/admin/adapters/{reference}/{action}"),
    ("GET", "/admin/aliases/{name}"),
    ("POST", "/admin/quality/{action}"),
]
WITHOUT_DATA = [("GET", "/v1/models"), ("GET", "/admin/adapters"), ("GET", "/admin/quality"), ("GET", "/metrics")]
KEYED = [*WITHOUT_DATA, *COMPLETIONS, *FEEDBACK, *MOVES, *FORMS, *CREATED, *NAMED]
OPEN = [("GET", "/health"), ("GET", "/ready")]

THERE = {
    "model": [BASE_NAME, "medical", "medical@1"],
    "reference": ["medical", "medical@2"],
    "name": ["medical"],
    "response_id": ["resp_1"],
    "file_id": ["file-1"],
    "upload_id": ["upload_1"],
    "fine_tuning_job_id": ["ftjob-1"],
    "batch_id": ["batch_1"],
}
"""What a request can name here. Beside them schemathesis would find nothing but 404s."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("described")


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    grant = KeyGrant(tenant="ops", is_admin=True, may_train=True)
    return create_key(folder / "keys.json", grant, now=datetime.now(UTC)).token


@pytest.fixture(scope="module")
def server(folder: Path, token: str) -> Serving:
    """One server for all that follows: what one request leaves behind, the next one finds."""
    assert token
    store, base_folder = AdapterStore(folder / "adapters"), write_base_folder(folder / "bases" / "tiny")
    server = make_serving(store, base_folder, keys=KeyRing(folder / "keys.json"), jobs_folder=folder / "jobs")
    server.publish("medical")
    server.publish("medical")
    return server


@pytest.fixture(scope="module")
def description(server: Serving) -> dict[str, Any]:
    return server.app.openapi()


def operations(description: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    paths = description["paths"].items()
    return {(method.upper(), path): operation for path, methods in paths for method, operation in methods.items()}


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    (content,) = operation["requestBody"]["content"].values()
    schema: dict[str, Any] = content["schema"]
    return schema


@pytest.mark.slow
def test_every_documented_route_is_described(description: dict[str, Any]) -> None:
    table = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| ([A-Z]+) \| `(/\S*)` \|", table, re.MULTILINE)) - {("GET", "/openapi.json")}
    assert set(operations(description)) == documented == {*KEYED, *OPEN}


def test_every_body_is_described_and_no_other(description: dict[str, Any]) -> None:
    bodies = {route: body_of(each) for route, each in operations(description).items() if "requestBody" in each}
    assert set(bodies) == {*COMPLETIONS, *FEEDBACK, *MOVES, *FORMS, *CREATED}
    assert all(body["type"] == "object" and body["properties"] for body in bodies.values())


def test_every_error_is_described_in_openais_shape(description: dict[str, Any]) -> None:
    answers = [each["responses"].items() for each in operations(description).values()]
    errors = [
        answer["content"]["application/json"]["schema"] for each in answers for code, answer in each if code > "3"
    ]
    detail = description["components"]["schemas"]["ErrorDetail"]["properties"]
    assert errors[1:] == errors[:-1]
    assert errors[0] == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert set(detail) == {"message", "type", "param", "code"}


def test_what_needs_a_key_says_so(description: dict[str, Any]) -> None:
    keyed = {route for route, each in operations(description).items() if each.get("security") == [{"key": []}]}
    assert keyed == set(KEYED)
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


BOUNDS = [
    (endpoint, field, keyword, most)
    for endpoint in ENDPOINTS
    for field, schema in body_of(completion_body(endpoint, RequestLimits()))["properties"].items()
    for keyword, most in schema.items()
    if keyword in ("maximum", "maxItems", "minimum") and field not in ("n", "prompt")
]


def value_of(keyword: str, size: int) -> Any:
    return [{}] * size if keyword == "maxItems" else size


@pytest.mark.parametrize(("endpoint", "field", "keyword", "most"), BOUNDS)
def test_a_described_bound_is_the_one_that_is_checked(endpoint: Endpoint, field: str, keyword: str, most: int) -> None:
    beyond = most - 1 if keyword == "minimum" else most + 1
    check_limits({field: value_of(keyword, most)}, endpoint, RequestLimits())
    with pytest.raises(InvalidRequestError, match=field):
        check_limits({field: value_of(keyword, beyond)}, endpoint, RequestLimits())


@pytest.fixture(scope="module")
def described(description: dict[str, Any]) -> schemathesis.BaseSchema:
    """The description, narrowed to the names that there are."""
    narrow = copy.deepcopy(description)
    for operation in operations(narrow).values():
        for parameter in operation.get("parameters", ()):
            parameter["schema"].setdefault("enum", THERE.get(parameter["name"], []))
    for route in COMPLETIONS:
        body_of(operations(narrow)[route])["properties"]["model"]["enum"] = THERE["model"]
    schema = schemathesis.openapi.from_dict(narrow)
    schema.config.generation.with_security_parameters = False
    return schema


@pytest.fixture(scope="module")
def send(server: Serving, token: str) -> Iterator[Callable[[Case[Any]], httpx.Response]]:
    """Asks the application in process, with a key; an answer that does not come within seconds is a failure."""
    client = server.client(token)

    async def ask(request: requests.PreparedRequest) -> httpx.Response:
        headers: Any = dict(request.headers)
        content: Any = request.body
        with anyio.fail_after(10):
            return await client.request(request.method or "", request.url or "", headers=headers, content=content)

    def send(case: Case[Any]) -> httpx.Response:
        asked = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
        return portal.call(ask, asked)

    with start_blocking_portal() as portal:
        yield send
        portal.call(client.aclose)


fuzzed = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


JUDGED_BY_VLLM = [positive_data_acceptance, negative_data_rejection]
"""Wrong types are vLLM's to refuse, whose stand-in takes anything; and no schema can express all limits."""

JUDGED_BY_STORE = [positive_data_acceptance]
"""A file's lines, names of files and of models, and which settings go with which method are not in the schema."""


@pytest.mark.parametrize(
    ("method", "path", "unchecked"),
    [
        *((*route, JUDGED_BY_VLLM) for route in COMPLETIONS),
        *((*route, JUDGED_BY_STORE) for route in [*FORMS, *CREATED]),
        *((*route, []) for route in [*FEEDBACK, *MOVES, *NAMED]),
    ],
)
@pytest.mark.parametrize("mode", GenerationMode)
@fuzzed
@given(data=st.data())
@pytest.mark.slow
def test_data_as_described_and_other_data_are_answered_as_described(
    described: schemathesis.BaseSchema,
    send: Callable[[Case[Any]], httpx.Response],
    method: str,
    path: str,
    unchecked: list[Any],
    mode: GenerationMode,
    data: st.DataObject,
) -> None:
    case = data.draw(described[path][method].as_strategy(mode))
    case.validate_response(send(case), excluded_checks=[ignored_auth, *unchecked])


@pytest.mark.parametrize(("method", "path"), [*WITHOUT_DATA, *OPEN])
@fuzzed
@given(data=st.data())
def test_what_takes_no_data_answers_as_described(
    described: schemathesis.BaseSchema, send: Callable[[Case[Any]], httpx.Response], method: str, path: str, data: Any
) -> None:
    case = data.draw(described[path][method].as_strategy())
    case.validate_response(send(case), excluded_checks=[ignored_auth])


@pytest.mark.anyio
@pytest.mark.parametrize("route", [route for route in KEYED if route[0] == "POST"])
async def test_without_a_key_no_body_is_read(server: Serving, route: tuple[str, str]) -> None:
    """What comes after the answer is thrown away, so that the client can read it."""
    events: list[str | int] = []

    async def receive() -> dict[str, Any]:
        events.append("read")
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message: Message) -> None:
        events.append(message.get("status", "body"))

    kind = b"multipart/form-data; boundary=b" if route in FORMS else b"application/json"
    headers = [*COMPLETION_SCOPE["headers"], (b"content-type", kind), (b"transfer-encoding", b"chunked")]
    await server.app(COMPLETION_SCOPE | {"method": route[0], "path": route[1], "headers": headers}, receive, send)
    assert events == [401, "body", "read", "body"]


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    serving = make_serving(store, base_folder)
    serving.publish("medical")
    return serving


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"stable": 1' + b"0" * 400 + b"}", "body.stable: Input should be less than or equal to"),
        (b'{"stable": 1.5}', "body.stable: Input should be a valid integer"),
        (b'{"reason": "\\ud83d"}', "unpaired surrogate"),
    ],
)
async def test_a_move_that_is_none_is_a_400_that_says_why(serving: Serving, content: bytes, message: str) -> None:
    async with serving.client() as client:
        response = await client.post("/admin/aliases/medical", content=content, headers=JSON)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.anyio
async def test_a_whole_number_may_have_a_fraction_of_zero(serving: Serving) -> None:
    async with serving.client() as client:
        response = await client.post("/admin/aliases/medical", json={"stable": 1.0})
    assert (response.status_code, response.json()["aliases"]) == (200, {"stable": 1})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "status"), [(b"\\ud83d\\ude00", 200), (b"\\\\ud83d", 200), (b"\\ud83d", 400), (b"\xed\xa0\xbd", 400)]
)
async def test_half_a_surrogate_pair_is_no_text(serving: Serving, text: bytes, status: int) -> None:
    body = b'{"model": "medical", "user": "' + text + b'", "messages": []}'
    async with serving.client() as client:
        response = await client.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == status


@pytest.mark.anyio
async def test_a_method_that_a_route_does_not_have_is_answered_with_those_it_has(serving: Serving) -> None:
    async with serving.client() as client:
        response = await client.post("/v1/models")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.anyio
async def test_nobody_is_sent_to_an_address_of_the_host_header(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, allowed_hosts=["*"])
    async with serving.client() as client:
        response = await client.get("/v1/models/", headers={"host": "elsewhere.example"})
    assert (response.status_code, "location" in response.headers) == (404, False)


LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("endpoint", "asked", "length"),
    [
        ("chat/completions", {}, {"max_tokens": 512}),
        ("chat/completions", {"max_tokens": None}, {"max_tokens": 512}),
        ("chat/completions", {"max_tokens": 9}, {"max_tokens": 9}),
        ("chat/completions", {"max_completion_tokens": 900}, {"max_completion_tokens": 900}),
        ("completions", {}, {}),  # vLLM's default there is OpenAI's, 16
        ("completions", {"max_tokens": None}, {"max_tokens": 512}),
        ("responses", {}, {"max_output_tokens": 512}),
        ("responses", {"max_output_tokens": 9}, {"max_output_tokens": 9}),
    ],
)
async def test_a_request_that_names_no_length_gets_the_default(
    serving: Serving, endpoint: str, asked: dict[str, Any], length: dict[str, int]
) -> None:
    async with serving.client() as client:
        await client.post(f"/v1/{endpoint}", json={"model": "medical"} | asked)
    sent = serving.engine.bodies[-1]
    assert {field: sent[field] for field in LENGTHS if field in sent} == length


@pytest.mark.anyio
async def test_the_operator_sets_the_default_length(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, limits={"default_max_tokens": 64})
    async with serving.client() as client:
        await client.post("/v1/chat/completions", json={"model": BASE_NAME})
    assert serving.engine.bodies[-1]["max_tokens"] == 64


def test_every_reference_of_the_description_leads_somewhere(description: dict[str, Any]) -> None:
    named = set(re.findall(r"'\$ref': '#/components/schemas/([^']*)'", str(description)))
    assert {"DpoMethod", "ErrorAnswer"} <= named <= set(description["components"]["schemas"])
    assert "$defs" not in str(description)
