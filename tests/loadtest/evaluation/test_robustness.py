"""Perturbed questions asked of a scripted endpoint: what is sent, and the table of scores."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from rich.console import Console

from config.dataset import DATASET_MANIFEST_FILE, DatasetManifest, DatasetRow, read_dataset, read_split
from config.domain import AnswerConfig
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.asking import Answers, ask_all
from loadtest.evaluation.page import render_page
from loadtest.evaluation.report import EvaluationReport, make_report
from loadtest.evaluation.robustness import PerturbedRows, perturb_rows, robustness_report
from loadtest.evaluation.robustness_table import print_robustness
from quality.metrics.answers import exact_match
from quality.robustness.settings import RobustnessConfig
from tests.datasets_on_disk import ANSWER, write_dataset

pytestmark = pytest.mark.anyio

REFUSAL = '{"chapter": "none"}'
Answer = Callable[[list[dict[str, Any]]], str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_dataset(tmp_path / "datasets" / "medical", num_test=4)
    manifest = read_dataset(folder).model_copy(update={"answer": AnswerConfig(refusal=REFUSAL)})
    (folder / DATASET_MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


class ChatEndpoint:
    """Answers by the turns it gets; like our server, it fills in the system prompt of the version."""

    def __init__(self, answer: Answer, filled: tuple[str, ...] = ("system",), max_chars: int = 10_000) -> None:
        self._answer, self._filled, self._max_chars = answer, filled, max_chars
        self.asked: list[list[dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(
                200, json={"id": "m", "object": "model", "created": 1, "owned_by": "x", "defaults": self._filled}
            )
        turns = json.loads(request.content)["messages"]
        self.asked.append(turns)
        if len(turns[-1]["content"]) > self._max_chars:
            return httpx.Response(400, json={"error": {"message": "the prompt is too long"}})
        message = {"role": "assistant", "content": self._answer(turns)}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m@1"}
        return httpx.Response(200, json=body | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def asked(
    folder: Path, endpoint: ChatEndpoint, *, few_shot: bool = False, **settings: Any
) -> tuple[DatasetManifest, list[DatasetRow], PerturbedRows, Answers]:
    manifest, rows = read_dataset(folder), read_split(folder, "test")
    perturbed = perturb_rows(folder.parent, manifest, rows, RobustnessConfig(**settings))
    http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(endpoint))
    async with AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http_client) as client:
        answers = await ask_all(
            client, manifest, [*rows, *perturbed.rows], "m", folder / "saved", few_shot=few_shot, concurrency=2,
            num_required=len(rows),
        )  # fmt: skip
    return manifest, rows, perturbed, answers


async def report_of(folder: Path, answer: Answer, *, max_chars: int = 10_000, **settings: Any) -> EvaluationReport:
    endpoint = ChatEndpoint(answer, max_chars=max_chars)
    manifest, rows, perturbed, answers = await asked(folder, endpoint, **settings)
    plain = [answers.first(len(rows))]
    report = make_report(manifest, rows, plain, [exact_match()], few_shot=False, started_at="2026-11-29T00:00:00+00:00")
    found = robustness_report(perturbed, rows, [answers], exact_match())
    return report.model_copy(update={"robustness": found})


def right_in_lower_case(turns: list[dict[str, Any]]) -> str:
    if "term" in turns[-1]["content"]:
        return ANSWER
    return REFUSAL if "?" in turns[-1]["content"] else "<b>what</b>"


async def test_each_perturbation_is_compared_with_the_same_questions(folder: Path) -> None:
    found = (
        await report_of(folder, right_in_lower_case, perturbations=("casing", "white_space", "out_of_scope"))
    ).robustness
    assert found is not None
    assert (found.num_drawn, found.plain[0].value) == (4, 1)
    casing, white_space, out_of_scope = found.perturbations
    (model,) = casing.models
    assert model.difference is not None
    assert model.plain is not None
    assert (model.score.value, model.plain.value, model.difference.value, model.difference.n) == (0, 1, -1, 4)
    assert {(item.plain_answer, item.answer, item.expected) for item in model.worst} == {
        (ANSWER, "<b>what</b>", ANSWER)
    }
    assert white_space.models[0].score.value == 1
    assert out_of_scope.expects_refusal
    assert (out_of_scope.models[0].plain, out_of_scope.models[0].difference) == (None, None)


async def test_what_is_not_asked_is_counted_with_its_reason(folder: Path) -> None:
    found = (
        await report_of(folder, right_in_lower_case, perturbations=("paraphrase", "neighbouring_domain"))
    ).robustness
    assert found is not None
    assert [(row.num_asked, row.num_not_asked, row.models) for row in found.perturbations] == [(0, 4, ())] * 2
    assert found.perturbations[0].not_asked_because == "no word with a listed synonym"
    assert "no other data set" in found.perturbations[1].not_asked_because


async def test_a_perturbed_question_that_the_server_refuses_is_not_counted(folder: Path) -> None:
    found = (
        await report_of(folder, right_in_lower_case, max_chars=200, perturbations=("white_space", "long_context"))
    ).robustness
    assert found is not None
    assert [(row.num_asked, row.num_not_asked) for row in found.perturbations] == [(4, 0), (0, 4)]
    assert "refused by the server" in found.perturbations[1].not_asked_because
    assert "the prompt is too long" in found.perturbations[1].not_asked_because


async def test_a_plain_question_that_the_server_refuses_ends_the_evaluation(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="the prompt is too long"):
        await report_of(folder, right_in_lower_case, max_chars=3)


async def test_the_table_and_the_page_show_scores_and_worst_questions(folder: Path) -> None:
    report = await report_of(folder, right_in_lower_case, perturbations=("casing", "digits", "paraphrase"))
    written = StringIO()
    print_robustness(Console(width=200, file=written), report)
    shown = " ".join(written.getvalue().split())
    assert "-1.000" in shown
    assert "paraphrase: 4 not asked: no word with a listed synonym" in shown
    assert "'<b>what</b>'; expected '{\"chapter\": \"skin\"}'" in shown
    page = render_page(report)
    assert "Worst perturbed questions of m@1" in page
    assert "<b>what" not in page
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


async def test_a_left_out_system_prompt_is_sent_empty(folder: Path) -> None:
    endpoint = ChatEndpoint(lambda turns: ANSWER)
    await asked(folder, endpoint, perturbations=("no_system_prompt",))
    sent = [tuple((turn["role"], turn["content"]) for turn in turns) for turns in endpoint.asked]
    assert {turns[:-1] for turns in sent[:4]} == {()}  # the server fills in its own
    assert {turns[:-1] for turns in sent[4:]} == {(("system", ""),)}


async def test_examples_follow_the_empty_system_prompt(folder: Path) -> None:
    endpoint = ChatEndpoint(lambda turns: ANSWER, filled=())
    await asked(folder, endpoint, few_shot=True, perturbations=("no_system_prompt",))
    assert {turns[0]["content"] for turns in endpoint.asked[:4]} == {"Chapter, as JSON."}
    assert {turns[0]["content"] for turns in endpoint.asked[4:]} == {""}
    assert {len(turns) for turns in endpoint.asked} == {6}


@pytest.mark.slow
async def test_saved_perturbed_answers_are_not_asked_again(folder: Path) -> None:
    await asked(folder, ChatEndpoint(lambda turns: ANSWER))
    again = ChatEndpoint(lambda turns: ANSWER)
    await asked(folder, again)
    assert len(again.asked) == 1  # which tells the version


async def test_a_training_question_is_none_of_another_domain(folder: Path) -> None:
    other = write_dataset(folder.parent / "legal", num_test=6)
    manifest = read_dataset(other)
    chat = manifest.chat.model_copy(update={"system": "Licence?"})
    (other / DATASET_MANIFEST_FILE).write_text(manifest.model_copy(update={"chat": chat}).model_dump_json())
    trained_on = (other / "train.jsonl").read_text().splitlines(keepends=True)[:5]
    (folder / "train.jsonl").write_text("".join(trained_on))
    _, _, perturbed, _ = await asked(folder, ChatEndpoint(lambda turns: ANSWER), perturbations=("neighbouring_domain",))
    assert [row.input for row in perturbed.rows] == ["term 5"]
