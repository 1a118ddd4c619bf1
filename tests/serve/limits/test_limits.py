"""What one request may ask for, and that nothing in a body can break the asking."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from config.limits import RequestLimits
from quality.judge import JudgeTask, choice_task, grade_task
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError
from serve.limits.grammar_cost import pattern_cost
from serve.limits.limits import REFUSED_FIELDS, check_limits

ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions", "responses")
MESSAGES = [{"role": "user", "content": "Angina"}]


def refusal(
    body: dict[str, Any], endpoint: Endpoint = "chat/completions", limits: RequestLimits | None = None
) -> InvalidRequestError:
    """The refusal of a request that must be refused."""
    with pytest.raises(InvalidRequestError) as refused:
        check_limits(body, endpoint, limits or RequestLimits())
    return refused.value


def schema_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects, so many levels."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat/completions", {"messages": MESSAGES}),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 2048, "n": 8, "logprobs": True, "top_logprobs": 20}),
        ("chat/completions", {"messages": MESSAGES, "stop": ["a", "b", "c", "d"], "logit_bias": {"5": -100}}),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 32, "ignore_eos": True, "stream": True}),
        ("chat/completions", {"messages": MESSAGES, "response_format": schema_of({"type": "object"})}),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": None, "stop": None, "tools": None, "priority": 0}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Angina"}]}]}),
        ("completions", {"prompt": "Angina", "ignore_eos": True, "echo": True, "logprobs": 5}),
        ("completions", {"prompt": ["Angina"] * 16, "n": 2, "max_tokens": 1}),
        ("completions", {"prompt": list(range(4000)), "prompt_logprobs": 0}),
        ("responses", {"input": "Angina", "max_output_tokens": 64, "text": {"format": {"type": "text"}}}),
        ("responses", {"input": MESSAGES, "instructions": "Answer in JSON."}),
    ],
)
def test_an_ordinary_request_passes(endpoint: Endpoint, body: dict[str, Any]) -> None:
    check_limits(body, endpoint, RequestLimits())


@pytest.mark.parametrize(
    ("field", "value", "got", "most"),
    [
        ("max_tokens", 100_000, "is 100000", 2048),
        ("max_completion_tokens", 2049, "is 2049", 2048),
        ("max_output_tokens", 4096, "is 4096", 2048),
        ("min_tokens", 4096, "is 4096", 2048),
        ("max_tokens", 10**400, "is over 10**18", 2048),
        ("n", 9, "is 9", 8),
        ("best_of", 100, "is 100", 8),
        ("logprobs", 21, "is 21", 20),
        ("top_logprobs", 1000, "is 1000", 20),
        ("prompt_logprobs", 50, "is 50", 20),
        ("top_logprobs", -1, "is -1, which may mean the whole vocabulary", 20),
        ("messages", MESSAGES * 257, "has 257 entries", 256),
        ("input", MESSAGES * 300, "has 300 entries", 256),
        ("tools", [{}] * 65, "has 65 entries", 64),
        ("stop", ["a"] * 5, "has 5 entries", 4),
        ("stop", "a" * 129, "has an entry of 129 characters", 128),
        ("stop", ["a", "b" * 200], "has an entry of 200 characters", 128),
        ("bad_words", ["b" * 200], "has an entry of 200 characters", 128),
        ("logit_bias", {str(number): 1 for number in range(301)}, "has 301 entries", 300),
        ("allowed_token_ids", list(range(500)), "has 500 entries", 300),
        ("messages", [{"role": "user", "content": "x" * 70_000}], "brings the prompt to 70016 characters", 65_536),
        ("input", "x" * 70_000, "brings the prompt to 70022 characters", 65_536),
        ("metadata", nested(65), "nests 65 levels deep", 64),
        ("metadata", {str(number): 1 for number in range(20_000)}, "contains 20000 values", 16_384),
        ("anything", [[1] * 9000, [1] * 9000], "contains 18002 values", 16_384),
        (
            "messages",
            [{"role": "user", "content": [{}] * 2048}],
            "has 2049 entries, including those of its messages",
            2048,
        ),
        (
            "messages",
            [{"role": "user", "content": [""] * 3000}],
            "has 3001 entries, including those of its messages",
            2048,
        ),
        (
            "input",
            [{"role": "user", "content": [{}] * 9}] * 250,
            "has 2500 entries, including those of its messages",
            2048,
        ),
        ("documents", [""] * 70_000, "brings the prompt to 70022 characters", 65_536),
        ("response_format", schema_of({"enum": ["x" * 40_000]}), "has 40084 bytes", 32_768),
        ("response_format", schema_of(nested(40)), "nests 42 levels deep", 32),
        ("structured_outputs", {"json": nested(33)}, "nests 34 levels deep", 32),
        ("structured_outputs", {"json": json.dumps(nested(33))}, "nests 33 levels deep", 32),
        ("structured_outputs", {"regex": "a" * 3000}, "expression of 3000 characters", 2048),
        ("structured_outputs", {"choice": ["x" * 40_000]}, "has 40016 bytes", 32_768),
        ("guided_regex", "a" * 3000, "expression of 3000 characters", 2048),
        ("response_format", schema_of({"pattern": "(a{100}){100}"}), "10002 characters with its repetitions", 2048),
        ("response_format", schema_of({"patternProperties": {"b{9999}": {}}}), "9999 characters with its rep", 2048),
        ("response_format", schema_of({"type": "array", "minItems": 10**9}), "a `minItems` of 1000000000", 4096),
        ("text", {"format": {"schema": {"maxLength": 5000}}}, "a `maxLength` of 5000", 4096),
    ],
)
def test_too_much_is_refused_with_the_value_got_and_the_limit(field: str, value: Any, got: str, most: int) -> None:
    error = refusal({"messages": MESSAGES} | {field: value})
    assert (error.status, error.param) == (400, "text.format" if field == "text" else field)
    assert got in str(error)
    assert str(error).endswith(f"at most {most}.")


@pytest.mark.parametrize("raw", ["1e999", "[[-1e400]]", f"{'9' * 400}.0", '{"a": [1, 1e309]}'])
def test_a_number_that_no_float_can_hold_is_refused(raw: str) -> None:
    error = refusal({"temperature": json.loads(raw)})
    assert error.param == "temperature"
    assert "beyond the range of a float" in str(error)


@pytest.mark.parametrize("value", ["100000", 100_000.0, " 100000 ", "1_00_000", float("inf")])
def test_what_vllm_would_read_as_a_number_is_judged_as_one(value: object) -> None:
    assert refusal({"max_tokens": value}).param == "max_tokens"


@pytest.mark.parametrize("value", [True, "many", [], {}, None, float("nan"), "9" * 100_000])
def test_what_is_no_number_is_left_to_vllm(value: object) -> None:
    check_limits({"max_tokens": value, "n": value, "logprobs": value}, "completions", RequestLimits())


def test_the_schema_of_a_tool_is_named_by_its_place() -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in "ab"]
    tools[1]["function"] = {"name": "b", "parameters": {"properties": {"x": {"pattern": "y" * 2049}}}}
    assert refusal({"messages": MESSAGES, "tools": tools}).param == "tools.1"


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"^\d{4}-\d{2}-\d{2}$", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"\(\{5\}", ".*"),
        *(r"[a-z0-9]+(-[a-z0-9]+)*", r"[\w.+-]+@([a-z0-9-]+\.)+[a-z]{2,}", r"(\d{1,3}\.){3}\d{1,3}", r"(foo)?(bar)?"),
    ],
)
def test_patterns_that_people_write_pass(pattern: str) -> None:
    check_limits({"response_format": schema_of({"pattern": pattern})}, "chat/completions", RequestLimits())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("structured_outputs", {"regex": "a+"}),
        ("structured_outputs", {"grammar": 'root ::= "a"'}),
        ("structured_outputs", {"structural_tag": "{}"}),
        ("response_format", {"type": "structural_tag", "structures": []}),
        ("guided_regex", "a+"),
        ("guided_grammar", 'root ::= "a"'),
    ],
)
def test_a_grammar_of_the_clients_own_is_off_unless_switched_on(field: str, value: Any) -> None:
    error = refusal({"messages": MESSAGES, field: value})
    assert error.param == field
    assert "limits.allow_" in str(error)
    limits = RequestLimits(allow_regex=True, allow_grammar=True, allow_structural_tag=True)
    check_limits({"messages": MESSAGES, field: value}, "chat/completions", limits)


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param({f"p{n}": {"pattern": ".{0,2000}"} for n in range(10)}, id="long patterns"),
        pytest.param({f"p{n}": {"enum": list(range(100))} for n in range(41)}, id="alternatives"),
        pytest.param({f"p{n}": {"maxLength": n} for n in range(900)}, id="bounds"),
    ],
)
def test_all_grammars_of_a_request_share_one_budget(properties: Any) -> None:
    assert "accepts at most 4096" in str(refusal({"response_format": schema_of({"properties": properties})}))
    names = list(properties)
    halves = [{name: properties[name] for name in half} for half in (names[::2], names[1::2])]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": half}}} for half in halves]
    assert refusal({"messages": MESSAGES, "tools": tools}).param in ("tools.0", "tools.1")


@pytest.mark.parametrize("pattern", ["(a*)*b", "((a|b)*(a|c)*)*d", "(?:a?b?)+", "(a?){0,100}", "(|a)+"])
def test_what_repeats_what_may_be_empty_is_refused(pattern: str) -> None:
    assert "may be empty" in str(refusal({"response_format": schema_of({"pattern": pattern})}))


@pytest.mark.parametrize("pattern", ["(a+){0,100}b", "((a+)+)+b", "(a+a+a+){0,60}b", "(a{1,30}){1,30}"])
def test_what_reads_a_text_in_many_ways_counts_more_than_its_length(pattern: str) -> None:
    assert "its repetitions expanded" in str(refusal({"response_format": schema_of({"pattern": pattern})}))


def test_a_bracket_in_a_class_of_characters_hides_no_repetition() -> None:
    error = refusal({"structured_outputs": {"regex": "(a{100}[)]b){100}"}})
    assert "its repetitions expanded" in str(error)


def test_a_batch_of_prompts_is_bounded_by_itself_and_with_its_answers() -> None:
    assert "contains 17 prompts" in str(refusal({"prompt": ["a"] * 17}, "completions"))
    assert "contains 17 prompts" in str(refusal({"prompt": [[1, 2]] * 17}, "completions"))
    assert "makes 64 answers of 16 prompts" in str(refusal({"prompt": ["a"] * 16, "n": 4}, "completions"))


def test_token_ids_count_as_the_prompt_that_they_are() -> None:
    assert refusal({"prompt": [7] * 65_537}, "completions").param == "prompt"


def test_what_is_read_together_is_counted_together() -> None:
    body = {"input": "x" * 40_000, "instructions": "y" * 40_000}
    assert "brings the prompt to 80000 characters" in str(refusal(body, "responses"))


@pytest.mark.parametrize("endpoint", ["chat/completions", "responses"])
def test_an_answer_that_cannot_end_by_itself_needs_a_length(endpoint: Endpoint) -> None:
    error = refusal({"ignore_eos": True, "max_tokens": None}, endpoint)
    assert error.param == "ignore_eos"
    assert "Set both" in str(error)


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_a_harmful_extension_is_refused_with_its_reason_but_may_be_empty(field: str) -> None:
    error = refusal({"messages": MESSAGES, field: "x"})
    assert (error.param, REFUSED_FIELDS[field] in str(error)) == (field, True)
    check_limits({"messages": MESSAGES, field: None}, "chat/completions", RequestLimits())


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("messages", {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}),
        ("messages", {"audio_url": {"url": "file:///etc/passwd"}}),
        ("input", {"type": "input_image", "image_url": "http://127.0.0.1:8000/metrics"}),
    ],
)
def test_no_client_has_an_address_fetched(field: str, part: dict[str, Any]) -> None:
    error = refusal({field: [{"role": "user", "content": [part]}]}, "responses")
    assert error.param == field
    assert "accepts text only" in str(error)


def test_the_operator_sets_the_limits() -> None:
    limits = RequestLimits(max_tokens=10, max_prompt_chars=5)
    assert "at most 10" in str(refusal({"max_tokens": 11}, limits=limits))
    assert "at most 5" in str(refusal({"input": "sixsix"}, limits=limits))


def test_a_flood_of_fields_is_refused() -> None:
    assert "300 fields" in str(refusal({str(number): 1 for number in range(300)}))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "field", ["messages", "tools", "response_format", "prompt", pytest.param("x" * 100_000, id="long")]
)
def test_a_bottomless_body_is_refused_without_recursion(endpoint: Endpoint, field: str) -> None:
    error = refusal({field: nested(20_000)}, endpoint)
    assert "nests 20000 levels deep" in str(error)
    assert len(str(error)) < 200


def test_a_bottomless_schema_inside_a_text_is_refused() -> None:
    text = '{"a":' * 3000 + "1" + "}" * 3000
    assert "too deep" in str(refusal({"structured_outputs": {"json": text}}))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [7] * 2_000_000},
        {"prompt": [[7]] * 700_000},
        {"messages": [{}] * 1_000_000},
        {"tools": [{"pattern": "(" * 30_000}] * 2},
        {"response_format": {"pattern": "[" * 2000 + "{9" * 10_000}},
        {"stop": ["a"] * 1_000_000},
        {"structured_outputs": {"regex": "(a{9}){9}" * 200 + "{99999}" * 30}},
    ],
)
def test_a_body_of_megabytes_is_refused_in_no_time(body: dict[str, Any]) -> None:
    start_s = time.process_time()
    refusal(body, "completions")
    assert time.process_time() - start_s < 2


NAMES = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "instructions", "tools", "function", "parameters", "text", "format"),
        *("max_tokens", "max_output_tokens", "n", "best_of", "logprobs", "top_logprobs", "stop", "bad_words"),
        *("logit_bias", "response_format", "structured_outputs", "json", "regex", "pattern", "patternProperties"),
        *("guided_json", "minItems", "type", "content", "image_url", "ignore_eos", "priority", "chat_template"),
    ]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | NAMES | st.text("[](){}\\a9,"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


PATTERNS = st.text("ab.[]()|*+?{}0123456789,\\", max_size=30)


@given(pattern=PATTERNS, times=st.integers(2, 40))
def test_a_pattern_repeated_costs_as_often_as_it_comes(pattern: str, times: int) -> None:
    alone, repeated = pattern_cost(pattern).size, pattern_cost(f"(a{pattern})" + f"{{{times}}}").size
    is_one_group = pattern.count("(") == pattern.count(")") == 0 and "[" not in pattern and "\\" not in pattern
    assert not is_one_group or repeated >= times * min(alone, 10**18 // times)


@pytest.mark.slow
@given(schema=st.recursive(
    st.fixed_dictionaries({}, optional={"pattern": PATTERNS, "enum": st.lists(st.integers(), max_size=9),
                                        "maxLength": st.integers(0, 9)}),
    lambda inner: st.fixed_dictionaries({"properties": st.dictionaries(st.text("pq", max_size=3), inner, max_size=4)})
    | st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=4)}),
))  # fmt: skip
def test_what_passes_costs_no_more_than_the_budget(schema: Any) -> None:
    """Counted once more, part by part."""

    def cost(node: Any) -> int:
        children = [*node.get("properties", {}).values(), *node.get("anyOf", [])]
        own = len(node.get("properties", {})) + len(node.get("anyOf", [])) + len(node.get("enum", []))
        patterns = pattern_cost(node["pattern"]).size if "pattern" in node else 0
        return own + 4 * ("maxLength" in node) + patterns + sum(map(cost, children))

    limits = RequestLimits(max_grammar_cost=12)
    try:
        check_limits({"response_format": schema_of(schema)}, "chat/completions", limits)
    except InvalidRequestError as error:
        event(str(error)[:60])
    else:
        assert cost(schema) <= 12


@pytest.mark.slow
@settings(deadline=1000)
@given(body=st.dictionaries(NAMES | st.text(), JSON_VALUES, max_size=6), endpoint=st.sampled_from(ENDPOINTS))
def test_any_json_passes_or_is_refused_and_nothing_else(body: dict[str, Any], endpoint: Endpoint) -> None:
    limits = RequestLimits(max_tokens=5, max_prompt_chars=50, max_schema_bytes=100, max_pattern_chars=10)
    with suppress(InvalidRequestError):
        check_limits(body, endpoint, limits)


@pytest.mark.parametrize("task", [grade_task("Angina?", "I20"), choice_task("Angina?", "I20", "I21")])
def test_a_judge_s_schema_is_within_the_limits(task: JudgeTask) -> None:
    check_limits({"messages": MESSAGES, "response_format": task.short_format}, "chat/completions", RequestLimits())
