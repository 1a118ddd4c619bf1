import json

import pytest

from quality.drift import Exchange
from quality.held_out import (
    GeneralText,
    HeldOutMessage,
    HeldOutQuestion,
    HeldOutSet,
    InvalidHeldOutError,
    read_held_out,
    write_held_out,
)
from quality.metrics.settings import NumericMetric

HELD_OUT = HeldOutSet(
    max_tokens=16,
    stop=("}",),
    questions=(
        HeldOutQuestion(messages=(HeldOutMessage(role="user", content="Angina?"),), expected='{"chapter": "é"}'),
    ),
    general=GeneralText(token_ids=(1, 2, 3), base_nll=3.5, adapter_nll=3.75),
    baseline=(Exchange(prompt_tokens=(1, 2), completion_tokens=(3,), mean_logprob=-0.25),),
)


def test_questions_are_read_as_they_were_written(tmp_path):
    write_held_out(HELD_OUT, tmp_path)
    assert read_held_out(tmp_path) == HELD_OUT


def test_a_version_of_the_old_form_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "probes.json").write_text("{}")
    with pytest.raises(InvalidHeldOutError, match=r"is now held_out\.json, in another form\. Train the adapter again"):
        read_held_out(tmp_path)


def test_a_version_without_questions_has_none(tmp_path):
    assert read_held_out(tmp_path) is None


def test_a_metric_with_settings_is_kept_with_them(tmp_path):
    by_number = HELD_OUT.model_copy(update={"metric": NumericMetric(tolerance=0.5)})
    write_held_out(by_number, tmp_path)
    assert read_held_out(tmp_path) == by_number


def test_a_set_of_an_earlier_version_is_scored_by_exact_match(tmp_path):
    (tmp_path / "held_out.json").write_bytes(fields(metric="exact_match"))
    assert read_held_out(tmp_path) == HELD_OUT


def fields(**changes):
    return json.dumps(json.loads(HELD_OUT.model_dump_json()) | changes).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "broken at top", id="empty"),
        pytest.param(b"[" * 100_000, "broken at top", id="deep"),
        pytest.param(fields(schema_version=2), "broken at schema_version", id="a later schema"),
        pytest.param(fields(run="rm"), "broken at run: Extra inputs", id="an unknown key"),
        pytest.param(fields(max_tokens=0), "broken at max_tokens", id="no room for an answer"),
        pytest.param(fields(metric="wit"), "broken at metric", id="an unknown metric"),
        pytest.param(
            fields(metric="bleu"), "broken at metric.*its scores are 0 to 100", id="a metric of servers' none"
        ),
        pytest.param(
            fields(questions=[{"messages": [], "expected": ""}]), r"broken at questions\.0\.messages", id="no turn"
        ),
        pytest.param(
            fields(general={"token_ids": [-1, 2], "base_nll": 1, "adapter_nll": 1}),
            r"broken at general\.token_ids\.0",
            id="a negative token",
        ),
        pytest.param(
            fields(general={"token_ids": [1, 2], "base_nll": 1, "adapter_nll": None}),
            r"broken at general\.adapter_nll",
            id="no figure",
        ),
        pytest.param(
            fields(questions=[{"messages": [{"role": "tool", "content": ""}], "expected": ""}]),
            r"questions\.0\.messages\.0\.role",
            id="a turn of nobody",
        ),
    ],
)
def test_what_is_no_set_of_questions_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "held_out.json").write_bytes(content)
    with pytest.raises(InvalidHeldOutError, match=message):
        read_held_out(tmp_path)
