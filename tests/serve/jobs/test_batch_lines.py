"""The input of a batch: what is refused, by line and code, and that it is read line by line."""

import io
import json
import tracemalloc
from typing import Any

import pytest

from serve.jobs.batch_lines import MAX_FAULTS, MAX_LINES, CheckedInput, check_input

MAX_BODY_BYTES = 8192


def line(custom_id: object = "a", **changes: object) -> dict[str, Any]:
    body = {"model": "medical", "messages": [{"role": "user", "content": "Angina"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def checked(*lines: object) -> CheckedInput:
    raw = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    return check(io.BytesIO(raw))


def check(file: Any) -> CheckedInput:
    models = ("medical", "legal")
    return check_input(file, "chat/completions", MAX_BODY_BYTES, lambda model: model in models, sleep=lambda s: None)


def test_a_good_input_says_how_many_lines_it_has() -> None:
    assert checked(line("a"), b"", line("b"), b"  ") == CheckedInput(2, "medical", ())


def test_a_batch_may_ask_several_models() -> None:
    assert checked(line("a"), line("b", body={"model": "legal"})).model is None


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        pytest.param(b"{", "invalid_json_line", None, id="half a line"),
        pytest.param(b"[]", "invalid_json_line", None, id="a list"),
        pytest.param(b'{"a": NaN}', "invalid_json_line", None, id="NaN"),
        pytest.param(b"\xff\xfe", "invalid_json_line", None, id="no UTF-8"),
        pytest.param(line(None), "missing_required_parameter", "custom_id", id="no custom_id"),
        pytest.param(line(body=None), "missing_required_parameter", "body", id="no body"),
        pytest.param(line(7), "invalid_custom_id", "custom_id", id="a number as custom_id"),
        pytest.param(line(""), "invalid_custom_id", "custom_id", id="an empty custom_id"),
        pytest.param(line("x" * 513), "invalid_custom_id", "custom_id", id="a long custom_id"),
        pytest.param(line("first"), "duplicate_custom_id", "custom_id", id="a custom_id twice"),
        pytest.param(line(method="GET"), "invalid_method", "method", id="another method"),
        pytest.param(line(url="/v1/completions"), "invalid_url", "url", id="another endpoint"),
        pytest.param(line(url=["/v1/chat/completions"]), "invalid_url", "url", id="a list as url"),
        pytest.param(line(body=[1]), "invalid_request", "body", id="a list as body"),
        pytest.param(line(body={"model": "medical", "stream": True}), "invalid_request", "body.stream", id="a stream"),
        pytest.param(line(body={"model": "gpt-4"}), "model_not_found", "body.model", id="an unknown model"),
        pytest.param(line(body={"model": ["a"]}), "model_not_found", "body.model", id="a list as model"),
        pytest.param(line(body={}), "model_not_found", "body.model", id="no model"),
        pytest.param(b'{"a": "' + b"x" * 20_000 + b'"}', "line_too_long", None, id="longer than a body may be"),
    ],
)
def test_a_bad_line_is_named_with_its_code(bad: object, code: str, param: str | None) -> None:
    found = checked(line("first"), bad, line("last"))
    assert [(fault.line, fault.code, fault.param) for fault in found.faults] == [(2, code, param)]
    assert found.num_lines == 3


def test_an_empty_file_is_refused() -> None:
    assert [fault.code for fault in checked(b"\n").faults] == ["empty_file"]


def test_the_check_ends_at_so_many_faults() -> None:
    assert len(checked(*[b"{"] * (MAX_FAULTS + 5)).faults) == MAX_FAULTS


class EndlessInput(io.RawIOBase):
    """A file of more lines than any batch may have, made as it is read."""

    def __init__(self) -> None:
        self.num_lines = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self.num_lines += 1
        return json.dumps(line(f"request-{self.num_lines}-" + "x" * 400)).encode() + b"\n"


@pytest.mark.slow
def test_too_many_lines_are_refused_without_reading_them_all() -> None:
    endless = EndlessInput()
    found = check(endless)
    assert [fault.code for fault in found.faults] == ["too_many_tasks"]
    assert endless.num_lines == MAX_LINES + 1


@pytest.mark.slow
def test_a_check_holds_no_lines() -> None:
    tracemalloc.start()
    try:
        check(EndlessInput())
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # the lines have 30 MB
    finally:
        tracemalloc.stop()
