"""Base and adapter on perturbed questions, as figures of a version."""

import logging
from pathlib import Path

import pytest

from adapters.scores import score_of
from adapters.store.evaluation_records import Evaluation, FigureRecord
from config.dataset import DatasetManifest, DatasetRow, read_split
from config.domain import AnswerConfig, EvaluationConfig
from config.home import Home
from quality.metrics.answers import exact_match
from tests.tiny_llama import (
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset
from train.evaluate.local import AnsweredRows, EvaluatedAnswer, evaluate
from train.evaluate.robustness import (
    PerturbedAnswers,
    PerturbedQuestions,
    measure_robustness,
    perturb_questions,
    robustness_figures,
)
from train.objectives.objective import Task

TOKENIZER = tiny_tokenizer()


class Held:
    """A base, and the held-out questions of a data set."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "var")
        prepare_tiny_base(self.home, write_tiny_llama(root / "model"))
        self.domain = tiny_domain(write_colour_data(root / "c.jsonl"))
        self.dataset: DatasetManifest = build_dataset(self.domain, self.home)
        self.rows: list[DatasetRow] = read_split(self.home.datasets / "colours", "test")

    def task(self, **robustness: object) -> Task:
        evaluation = EvaluationConfig.model_validate({"robustness": robustness or None, "max_new_tokens": 4})
        dataset = self.dataset.model_copy(update={"evaluation": evaluation, "answer": AnswerConfig(refusal="none")})
        base = self.home.bases / "tiny"
        return Task(self.domain, dataset, {"train": []}, TOKENIZER, RENDERED_AT, self.home.runs, base)

    def perturbed(self, max_tokens: int | None = None, **robustness: object) -> PerturbedQuestions | None:
        return perturb_questions(self.task(**robustness), self.rows, self.home.datasets, max_tokens)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return Held(tmp_path_factory.mktemp("robustness"))


def figures(held: Held, perturbed: PerturbedQuestions) -> tuple[tuple[FigureRecord, ...], PerturbedAnswers]:
    model = load_causal_lm(held.home.bases / "tiny").eval()
    answered: AnsweredRows = evaluate(model, TOKENIZER, held.dataset, held.rows, RENDERED_AT)
    told: list[int] = []
    answers = measure_robustness(model, held.task(), perturbed, told.append)
    assert sum(told) == 2 * len(perturbed.rows)
    return robustness_figures(exact_match(), perturbed, answers, held.rows, answered), answers


@pytest.mark.slow
def test_without_settings_nothing_is_perturbed(held: Held) -> None:
    assert held.perturbed() is None


@pytest.mark.slow
def test_each_perturbation_is_a_figure_beside_the_unperturbed(held: Held) -> None:
    perturbed = held.perturbed(
        perturbations=["casing", "long_context", "digits", "paraphrase"], num_questions=5, long_context_words=20
    )
    assert perturbed is not None
    found, answers = figures(held, perturbed)
    assert [record.key for record in found] == [
        f"robustness[{part}]" for part in ("unperturbed", "casing", "long_context", "digits")
    ]
    assert {record.adapter.n for record in found} == {5}
    assert all(record.base is not None and record.difference is not None for record in found)
    assert answers.base == answers.adapter  # there is no adapter
    assert len(answers.base) == 15


def test_answers_are_scored_against_their_own_row(held: Held) -> None:
    perturbed = held.perturbed(perturbations=["casing", "out_of_scope"], num_questions=4)
    assert perturbed is not None
    right = tuple(row.output for row in perturbed.rows)
    wrong = tuple("?" for row in perturbed.rows)
    none, unknown = score_of(0, 8), [EvaluatedAnswer("?", (), (), 0.0)] * 8
    plain = AnsweredRows(
        Evaluation(metric="exact_match", base=none, adapter=none, base_valid_format=none, valid_format=none),
        unknown,
        unknown,
    )
    found = robustness_figures(exact_match(), perturbed, PerturbedAnswers(wrong, right), held.rows, plain)
    assert {record.key: (record.base and record.base.value, record.adapter.value) for record in found} == {
        "robustness[unperturbed]": (0, 0),
        "robustness[casing]": (0, 1),
        "robustness[out_of_scope]": (0, 1),
    }


def test_questions_that_do_not_fit_are_left_out(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"perturbations": ["casing", "long_context"], "num_questions": 4}
    with caplog.at_level(logging.WARNING):
        perturbed = held.perturbed(508, **settings)
    assert perturbed is not None
    assert {copy.perturbation for copy in perturbed.copies} == {"casing"}
    assert "4 of 8 perturbed questions have more than 508 tokens" in caplog.text
