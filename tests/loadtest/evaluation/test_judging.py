"""The judge as a metric, against a scripted endpoint."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.evaluate import EvaluationError
from loadtest.evaluation.calibration import LabelledAnswer, ask_judges
from loadtest.evaluation.judging import MAX_FAILURES, JudgePlace, LiveJudge, check_judges
from loadtest.evaluation.sheets import make_sheet
from quality.metrics.figures import difference_of, figure_of
from quality.metrics.item import Item, ToolUse
from quality.metrics.judged import Judged, JudgedPairs
from quality.metrics.settings import JudgeMetric, PairwiseMetric
from tests.loadtest.evaluation.judge_endpoint import ScriptedJudge, better, grade, item, shown_between
from tests.narrowing import not_none

pytestmark = pytest.mark.anyio

GOOD, BAD = "a good answer", "a bad answer"


def by_goodness(text: str, body: dict[str, Any]) -> str:
    return grade(5 if shown_between(text, "ANSWER") == GOOD else 2)


def judged(**settings: Any) -> Judged:
    return Judged(JudgeMetric.model_validate({"name": "judge", **settings}))


def pairs() -> JudgedPairs:
    return JudgedPairs(PairwiseMetric(name="judge_pairwise"))


async def asked(
    metric: Judged, judge: ScriptedJudge, items: list[Item], folder: Path, rubric: str | None = None
) -> Judged:
    await ask_judges([metric], [items], judge.place(folder), rubric, [])
    return metric


async def test_grades_become_a_figure_of_0_to_1(tmp_path: Path) -> None:
    items = [item(1, GOOD), item(2, BAD)]
    metric = await asked(judged(), ScriptedJudge(by_goodness), items, tmp_path)
    assert metric.scores(items) == [1.0, 0.25]
    assert (figure_of(metric, items).value, metric.judge) == (0.625, "tiny")


async def test_a_judge_is_asked_greedily_with_the_domains_rubric(tmp_path: Path) -> None:
    judge = ScriptedJudge(by_goodness)
    await asked(judged(), judge, [item(1, GOOD)], tmp_path, "5: the right chapter.")
    (body,) = judge.bodies
    assert (body["temperature"], body["model"]) == (0.0, "tiny")
    assert "5: the right chapter." in body["messages"][-1]["content"]
    assert shown_between(body["messages"][-1]["content"], "RIGHT ANSWER") == "right"
    assert "pattern" in body["response_format"]["json_schema"]["schema"]["properties"]["reason"]


async def test_the_metrics_own_rubric_and_scale_win(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda text, body: grade(1))
    metric = judged(rubric="1: polite.", scale="0-1")
    await asked(metric, judge, [item(1, GOOD)], tmp_path, "5: the right chapter.")
    assert "1: polite." in judge.bodies[0]["messages"][-1]["content"]
    assert "the right chapter" not in judge.bodies[0]["messages"][-1]["content"]
    assert (metric.kind, metric.scores([item(1, GOOD)])) == ("share", [1.0])


async def test_a_judge_and_people_see_tool_calls(tmp_path: Path) -> None:
    call = ToolUse("find", {"city": "Bern"})
    calling = Item(id="1", question="Weather?", expected="", answer="", expected_calls=(call,), calls=(call,))
    judge = ScriptedJudge(by_goodness)
    await asked(judged(), judge, [calling], tmp_path)
    text = judge.bodies[0]["messages"][-1]["content"]
    assert shown_between(text, "ANSWER") == '{"name": "find", "arguments": {"city": "Bern"}}'
    assert shown_between(text, "RIGHT ANSWER") == shown_between(text, "ANSWER")
    (row,) = make_sheet("medical", "abc", {"medical@1": [calling]}, seed=13).rows
    assert row.answer == row.expected == calling.whole_answer


async def test_the_same_answer_is_judged_once(tmp_path: Path) -> None:
    judge = ScriptedJudge(by_goodness)
    await ask_judges([judged()], [[item(1, GOOD)], [item(1, GOOD)]], judge.place(tmp_path), None, [])
    await asked(judged(), judge, [item(1, GOOD), item(2, GOOD)], tmp_path)
    assert len(judge.bodies) == 2  # one of the second item
    await asked(judged(rubric="5: short."), judge, [item(1, GOOD)], tmp_path)
    assert len(judge.bodies) == 3  # another rubric, another grade


async def test_nonsense_leaves_its_item_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    def reply(text: str, body: dict[str, Any]) -> str:
        return "Well, good." if "question 2" in text else grade(4)

    judge, items = ScriptedJudge(reply), [item(n, GOOD) for n in (1, 2, 3)]
    figure = figure_of(await asked(judged(), judge, items, tmp_path), items)
    assert (figure.n, figure.value) == (2, 0.75)
    ((left_out, reason),) = figure.left_out
    assert left_out == "2"
    assert "not JSON: 'Well, good.'" in reason
    assert len(judge.bodies) == 4  # nonsense is asked once more


@pytest.mark.parametrize("refusal", [400, 422])
async def test_a_judge_without_schemas_is_asked_without(tmp_path: Path, refusal: int) -> None:
    def reply(text: str, body: dict[str, Any]) -> Any:
        return (
            httpx.Response(refusal, json={"error": {"message": "no schemas"}})
            if "response_format" in body
            else (f"```json\n{grade(3)}\n```")
        )

    metric = await asked(judged(), ScriptedJudge(reply), [item(1, GOOD)], tmp_path)
    assert metric.scores([item(1, GOOD)]) == [0.5]


async def test_an_interrupted_judge_goes_on(tmp_path: Path) -> None:
    def once(text: str, body: dict[str, Any]) -> Any:
        return httpx.Response(401, json={"error": {"message": "bad key"}}) if "question 2" in text else grade(4)

    items = [item(1, GOOD), item(2, GOOD)]
    with pytest.raises(EvaluationError, match=r"Metric `judge`: judge 'tiny' at http://test/v1/ .*401 .*bad key"):
        await ask_judges([judged()], [items], ScriptedJudge(once).place(tmp_path, 1), None, [])
    (saved,) = (tmp_path / "judged").iterdir()
    saved.write_bytes(saved.read_bytes() + b'{"id": "half')  # as a killed process leaves it
    judge = ScriptedJudge(by_goodness)
    await asked(judged(), judge, items, tmp_path)
    assert len(judge.bodies) == 1
    await asked(judged(), judge, items, tmp_path)
    assert len(judge.bodies) == 1
    assert saved.stat().st_mode & 0o077 == 0


async def test_a_judge_that_keeps_failing_ends_the_evaluation(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda text, body: httpx.Response(503, json={"error": {"message": "overloaded"}}))
    with pytest.raises(EvaluationError, match=r"503 .*overloaded"):
        await asked(judged(), judge, [item(n, GOOD) for n in range(50)], tmp_path)
    assert MAX_FAILURES <= len(judge.bodies) <= MAX_FAILURES + 1


async def test_a_judge_that_refuses_every_question_is_one_line(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda text, body: httpx.Response(400, json={"error": {"message": "no temperature"}}))
    with pytest.raises(EvaluationError, match=r"400 .*no temperature"):
        await asked(judged(), judge, [item(n, GOOD) for n in range(50)], tmp_path)


async def test_a_body_that_is_not_json_leaves_its_item_out(tmp_path: Path) -> None:
    kind = {"content-type": "application/json"}
    judge = ScriptedJudge(lambda text, body: httpx.Response(200, content=b"<html>", headers=kind))
    metric = await asked(judged(), judge, [item(1, GOOD)], tmp_path)
    assert figure_of(metric, [item(1, GOOD)]).n == 0


@pytest.mark.slow
async def test_failures_that_are_not_in_a_row_leave_their_items_out(tmp_path: Path) -> None:
    def reply(text: str, body: dict[str, Any]) -> Any:
        is_odd = int(shown_between(text, "PROMPT").removeprefix("question ")) % 2
        return httpx.Response(500, json={"error": {"message": "oops"}}) if is_odd else grade(4)

    metric, items = judged(), [item(n, GOOD) for n in range(2 * MAX_FAILURES + 2)]
    await ask_judges([metric], [items], ScriptedJudge(reply).place(tmp_path, 1), None, [])
    figure = figure_of(metric, items)
    assert (figure.n, len(figure.left_out)) == (MAX_FAILURES + 1, MAX_FAILURES + 1)
    assert figure.left_out[0] == ("1", "the judge did not answer: Error code: 500 - oops")


def prefers_good(text: str, body: dict[str, Any]) -> str:
    return better("first" if shown_between(text, "FIRST ANSWER") == GOOD else "second")


async def test_a_preference_counts_in_both_orders(tmp_path: Path) -> None:
    first, second = [item(1, BAD), item(2, GOOD), item(3, GOOD)], [item(1, GOOD), item(2, BAD), item(3, GOOD)]
    metric, judge = pairs(), ScriptedJudge(prefers_good)
    await ask_judges([metric], [first, second], judge.place(tmp_path), None, [])
    assert metric.scores(second) == [1.0, 0.0, 0.5]  # the same answer is a tie, and not asked
    assert metric.scores(first) == [0.5, 0.5, 0.5]
    assert difference_of(metric, first, second).value == 0
    assert len(judge.bodies) == 4


async def test_a_judge_that_prefers_the_first_place_gives_ties(tmp_path: Path) -> None:
    metric = pairs()
    judge = ScriptedJudge(lambda text, body: better("first"))
    await ask_judges([metric], [[item(1, BAD)], [item(1, GOOD)]], judge.place(tmp_path), None, [])
    assert metric.scores([item(1, GOOD)]) == [0.5]


def labelled(number: int, answer: str, score: float) -> LabelledAnswer:
    return LabelledAnswer(item(number, answer), f"sheet {number}", score)


async def test_kappa_is_of_the_answers_that_people_graded(tmp_path: Path) -> None:
    people = [labelled(1, GOOD, 1.0), labelled(2, GOOD, 1.0), labelled(3, BAD, 0.0), labelled(4, GOOD, 0.0)]
    metric = judged()
    await ask_judges([metric], [[item(9, GOOD)]], ScriptedJudge(by_goodness).place(tmp_path), None, people)
    # Observed 3 of 4; by chance 0.5 * 0.75 + 0.5 * 0.25 = 0.5.
    assert not_none(metric.agreement).n == 4
    assert not_none(not_none(metric.agreement).kappa) == pytest.approx(0.5)


async def test_kappa_of_preferences_is_of_answers_side_by_side(tmp_path: Path) -> None:
    people = [
        labelled(1, GOOD, 1.0), labelled(1, BAD, 0.0), labelled(2, BAD, 0.25), labelled(2, GOOD, 0.75),
        labelled(3, GOOD, 0.5), labelled(3, BAD, 0.5), labelled(4, GOOD, 0.5),
    ]  # fmt: skip
    metric = pairs()
    models = [[item(9, GOOD)], [item(9, GOOD)]]
    await ask_judges([metric], models, ScriptedJudge(prefers_good).place(tmp_path), None, people)
    # People: first, second, tie; the judge: first, second, first. Observed 2/3; by chance 1/3 * 2/3 + 1/3 * 1/3.
    assert not_none(metric.agreement).n == 3
    assert not_none(not_none(metric.agreement).kappa) == pytest.approx(0.5)


async def test_without_an_endpoint_a_judge_is_left_out(tmp_path: Path) -> None:
    metric, items = judged(), [item(1, GOOD)]
    (note,) = await ask_judges([metric], [items], JudgePlace(None, tmp_path, {}), None, [])
    assert "`judge` is left out" in note
    assert [reason for _, reason in figure_of(metric, items).left_out] == ["the judge was not asked"]


async def test_one_model_alone_has_no_preferences(tmp_path: Path) -> None:
    metric, judge = pairs(), ScriptedJudge(prefers_good)
    (note,) = await ask_judges([metric], [[item(1, GOOD)]], judge.place(tmp_path), None, [])
    assert "`--against`" in note
    assert figure_of(metric, [item(1, GOOD)]).n == 0
    assert judge.bodies == []


def test_a_missing_api_key_is_named_at_once() -> None:
    metric = judged(url="http://judge.test/v1", model="large", api_key_env="JUDGE_KEY")
    with pytest.raises(EvaluationError, match=r"'JUDGE_KEY' .* is not set"):
        check_judges([metric], {})
    check_judges([metric], {"JUDGE_KEY": "secret"})


@pytest.mark.slow
async def test_a_judge_elsewhere_that_is_away_is_one_line(tmp_path: Path) -> None:
    metric = judged(url="http://127.0.0.1:9/v1", model="large")
    with pytest.raises(EvaluationError, match=r"'large' at http://127\.0\.0\.1:9/v1/ gives no answer"):
        async with LiveJudge(metric, JudgePlace(None, tmp_path, {}), None) as judge:
            await judge.grade([item(1, GOOD)])


async def test_an_edited_reply_is_asked_again(tmp_path: Path) -> None:
    judge = ScriptedJudge(by_goodness)
    await asked(judged(), judge, [item(1, GOOD)], tmp_path)
    (saved,) = (tmp_path / "judged").iterdir()
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"reply": "9"}) + "\n")
    metric = await asked(judged(), judge, [item(1, GOOD)], tmp_path)
    assert metric.scores([item(1, GOOD)]) == [1.0]
