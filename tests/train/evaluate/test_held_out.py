"""Which held-out rows a server can ask again."""

import logging

import pytest

from config.dataset import DatasetRow, FunctionCall, Message, ToolCall
from config.domain import DomainConfig
from quality.errors import MetricError
from train.evaluate.held_out import _questions, check_held_out, quality_rules

FIELDS = {"name": "a", "description": "A.", "base": "tiny", "data": {"path": "a.jsonl"}, "chat": {"system": "Colour?"}}
CONFIG = DomainConfig.model_validate(FIELDS)
ASK, ANSWER = Message(role="user", content="a rose"), Message(role="assistant", content="red")
CALL = ToolCall(function=FunctionCall(name="look", arguments={}))


def row(*prompt: Message, answer: Message = ANSWER, **fields: object) -> DatasetRow:
    messages = (*prompt, answer)
    return DatasetRow.model_validate({"messages": messages, "input": "a rose", "output": answer.content, **fields})


def test_texts_of_several_turns_are_asked_with_the_domains_prompt() -> None:
    system = Message(role="system", content="Colour?")
    (question,) = _questions(CONFIG, [row(system, ASK, ANSWER, ASK)])
    assert [turn.role for turn in question.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    "left_out",
    [
        row(ASK, tools=({"type": "function"},)),
        row(Message(role="system", content="Of which kind?"), ASK),
        row(Message(role="developer", content="Colour?"), ASK),
        row(ASK, Message(role="assistant", tool_calls=(CALL,)), Message(role="tool", content="red")),
        row(ASK, answer=Message(role="assistant", tool_calls=(CALL,))),
    ],
)
def test_rows_that_are_more_than_texts_are_left_out(left_out: DatasetRow, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(_questions(CONFIG, [left_out, row(ASK)])) == 1
    assert "1 of 2 held-out questions have tools or a system prompt of their own" in caplog.text


def scored_by(evaluation: dict[str, object], *, is_published: bool = True) -> DomainConfig:
    quality = {"publish_held_out": is_published}
    return DomainConfig.model_validate(FIELDS | {"evaluation": evaluation, "quality": quality})


@pytest.mark.parametrize(
    ("evaluation", "name"),
    [
        ({}, "exact_match"),
        ({"metrics": ["json_fields", "bleu"]}, "json_fields"),
        ({"metrics": ["bleu"], "metric": "token_f1"}, "token_f1"),
    ],
)
def test_the_first_metric_scores_on_servers_unless_another_is_named(evaluation: dict[str, object], name: str) -> None:
    config = scored_by(evaluation)
    check_held_out(config)
    assert quality_rules(config).held_out_metric == name
    assert name in {metric.name for metric in config.evaluation.measured}


def test_a_metric_that_servers_cannot_use_is_refused_before_training() -> None:
    config = scored_by({"metrics": ["bleu", "exact_match"]})
    with pytest.raises(
        MetricError, match=r"`bleu` cannot .*: its scores are 0 to 100\. Set `evaluation.metric` to one of"
    ):
        check_held_out(config)


def test_questions_that_nobody_publishes_may_have_any_metric() -> None:
    check_held_out(scored_by({"metrics": ["bleu"]}, is_published=False))


def test_rows_that_the_metric_cannot_score_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    config = scored_by({"metric": {"name": "numeric", "tolerance": 1}})
    rows = [row(ASK, answer=Message(role="assistant", content=text)) for text in ("17 g", "none", "4")]
    with caplog.at_level(logging.WARNING):
        assert [question.expected for question in _questions(config, rows)] == ["17 g", "4"]
    assert "1 of 3 held-out questions have an expected answer that `numeric` cannot score" in caplog.text


def test_a_question_says_whether_it_is_in_scope() -> None:
    inside, outside = _questions(CONFIG, [row(ASK), row(ASK, in_scope=False)])
    assert (inside.in_scope, outside.in_scope) == (True, False)


def test_another_metric_for_servers_asks_for_no_new_data_set() -> None:
    usual, other = scored_by({}), scored_by({"metric": "token_f1"})
    assert usual.evaluation.model_dump_json() == other.evaluation.model_dump_json()
