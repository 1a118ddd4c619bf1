"""vLLM's request types, validated: the same results as vLLM's own, in a time that wrong entries do not add to."""

import time
from typing import Any

import pytest
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from config.limits import RequestLimits
from serve.engine.protocol import Endpoint
from serve.engine.requests import parse_request
from serve.errors import InvalidRequestError
from serve.limits.limits import check_limits

TYPES: dict[Endpoint, Any] = {
    "chat/completions": ChatCompletionRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
PARTS = [{"type": "text", "text": "Angina"}, {"type": "text", "text": "pectoris"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS = [
    {"role": "system", "content": "Codes."},
    {"role": "user", "content": PARTS},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "I20"},
]
INPUT = [
    {"role": "user", "content": [{"type": "input_text", "text": "Angina"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "I20"},
]


def shown(request: Any) -> dict[str, Any]:
    """All of a request but the id that each one draws."""
    fields: dict[str, Any] = request.model_dump(warnings=False)
    return {name: value for name, value in fields.items() if name != "request_id"}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat/completions", {"messages": TURNS, "tools": [TOOL], "stop": ["a", "b"], "x": [1]}),
        ("chat/completions", {"messages": TURNS[:2], "logit_bias": {"5": -1}, "temperature": "0.5", "n": 2.0}),
        ("completions", {"prompt": "Angina"}),
        ("completions", {"prompt": ["Angina", "Asthma"], "echo": True}),
        ("completions", {"prompt": [1, 2, 3]}),
        ("completions", {"prompt": [[1, 2], [3]], "stop_token_ids": [5]}),
        ("responses", {"input": "Angina", "metadata": {"a": "b"}}),
        ("responses", {"input": INPUT, "include": ["reasoning.encrypted_content"]}),
    ],
)
def test_a_request_is_what_vllm_makes_of_it(endpoint: Endpoint, body: dict[str, Any]) -> None:
    parsed, own = parse_request(endpoint, dict(body)), TYPES[endpoint].model_validate(dict(body))
    assert type(parsed) is TYPES[endpoint]
    assert parsed.model_fields_set == own.model_fields_set
    assert shown(parsed) == shown(own)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"messages": TURNS, "stop": [1]}),
        ("completions", {"prompt": [1, "a"]}),
        ("completions", {"prompt": "Angina", "stop_token_ids": [1, None]}),
        ("responses", {"input": [{}]}),
        ("responses", {"input": INPUT, "include": ["x", "y"]}),
    ],
)
def test_what_vllm_refuses_is_refused_with_its_first_field(endpoint: Endpoint, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as own:
        TYPES[endpoint].model_validate(dict(body))
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(endpoint, dict(body))
    assert refused.value.param == ".".join(str(part) for part in own.value.errors()[0]["loc"])


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("responses", {"input": [{}] * 250}),
        ("responses", {"input": [{"role": "user", "content": [{}] * 2000}]}),
        ("responses", {"input": [{"type": "message", "role": "user", "content": [{"type": "x"}] * 7}] * 250}),
        ("responses", {"input": "Angina", "include": ["x"] * 16_000}),
        ("completions", {"prompt": [7] * 65_000 + [None]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{}] * 2000}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [""] * 2000}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": PARTS * 4}] * 200}),
    ],
)
def test_many_wrong_entries_cost_no_more_than_one(endpoint: Endpoint, body: dict[str, Any]) -> None:
    check_limits(body, endpoint, RequestLimits())
    start_s = time.process_time()
    for _ in range(5):
        try:
            parse_request(endpoint, dict(body))
        except InvalidRequestError:
            continue
    assert time.process_time() - start_s < 0.5  # one of them alone took 0.3 to 2 s
