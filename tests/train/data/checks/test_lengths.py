from dataclasses import replace

from config.dataset import FunctionCall, Message, ToolCall
from tests.train.data.checks.rows import example, examples
from train.data.checks.lengths import check_lengths, summarize_lengths


def test_quantiles_are_lengths_that_occur():
    summary = summarize_lengths([*range(1, 100), 500])
    assert (summary.smallest, summary.median, summary.p95, summary.p99, summary.largest) == (1, 50, 95, 99, 500)


def test_a_far_longer_row_is_found():
    pairs = [(f"question {n:03d}", "answer") for n in range(200)]
    assert check_lengths(examples(*pairs)) == ()
    found = check_lengths(examples(*pairs, ("question " * 90, "answer")))
    assert [str(each.origin) for each in found] == ["rows.jsonl line 201"]


def test_an_empty_answer_is_found():
    assert [each.reason for each in check_lengths(examples(("a", "b"), ("a", " \n")))] == ["the answer is empty"]


def test_an_answer_that_calls_a_tool_is_not_empty():
    call = ToolCall(function=FunctionCall(name="find", arguments={}))
    row = replace(example("a"), completion=(Message(role="assistant", tool_calls=(call,)),))
    assert check_lengths([row]) == ()
