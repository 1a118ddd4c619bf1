"""`objective.grader` as a part of the reward: OpenAI's graders, computed here or asked of a model."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from config.graders import (
    GraderConfig,
    MultiGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    single_graders,
    templates_of,
)
from config.objective import ReinforcementObjective
from quality.grading.formula import evaluate_formula
from quality.grading.similarity import check_available, similarity
from quality.grading.template import TemplateError, missing_fields, render
from train.errors import DataError, RecipeError
from train.objectives.rewards import RewardedPrompt, ScoreAnswers

if TYPE_CHECKING:
    import openai

_TIMEOUT_S = 120.0
_MAX_TOKENS = 256
_AT_ONCE = 8
_SCHEMA = {
    "type": "object",
    "properties": {"result": {"type": "number"}},
    "required": ["result"],
    "additionalProperties": False,
}


def grader_score(objective: ReinforcementObjective) -> ScoreAnswers | None:
    """Scores of the objective's grader; None if it has none.

    An answer that a placeholder does not fit, such as a field of its JSON that it lacks, gets the lowest score.
    """
    grader = objective.grader
    if grader is None:
        return None

    def score(questions: Sequence[RewardedPrompt], answers: Sequence[str]) -> list[float]:
        pairs = list(zip(map(item_of, questions), answers, strict=True))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda pair: _score(grader, objective, *pair), pairs))

    return score


def item_of(question: RewardedPrompt) -> dict[str, Any]:
    """What `item` stands for in a grader's texts."""
    expected = {} if question.expected is None else {"reference_answer": question.expected}
    return expected | {"messages": [turn.for_template() for turn in question.prompt]} | dict(question.item)


def check_items(grader: GraderConfig, questions: Sequence[RewardedPrompt]) -> None:
    """Check that each row has the fields that the grader's texts name, and that all of it can be computed.

    Raises:
        DataError: One has not.
        MetricError: A similarity needs a package that is missing.
    """
    for one in single_graders(grader):
        if isinstance(one, TextSimilarityGrader):
            check_available(one.evaluation_metric)
    for number, question in enumerate(questions, 1):
        missing = [place for text in templates_of(grader) for place in missing_fields(text, item_of(question))]
        if missing:
            raise DataError(
                f"The grader {grader.name!r} uses {missing[0]}, but row {number} has {', '.join(sorted(question.item))}"
                " only. Add the field to each line, or correct the grader."
            )


def _score(grader: GraderConfig, objective: ReinforcementObjective, item: Mapping[str, Any], answer: str) -> float:
    if isinstance(grader, MultiGrader):
        scores = {name: _score(one, objective, item, answer) for name, one in grader.graders.items()}
        return evaluate_formula(grader.calculate_output, scores)
    try:
        if isinstance(grader, StringCheckGrader):
            return _compare(grader, render(grader.input, item, answer), render(grader.reference, item, answer))
        if isinstance(grader, TextSimilarityGrader):
            texts = render(grader.input, item, answer), render(grader.reference, item, answer)
            return similarity(grader.evaluation_metric, *texts)
        return _ask(grader, objective, [(turn.role, render(turn.content, item, answer)) for turn in grader.input])
    except TemplateError:
        return grader.range[0] if isinstance(grader, ScoreModelGrader) else 0.0


def _compare(grader: StringCheckGrader, text: str, reference: str) -> float:
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.lower() in text.lower())


def _ask(grader: ScoreModelGrader, objective: ReinforcementObjective, turns: Sequence[tuple[str, str]]) -> float:
    """The model's score, within the grader's range; a reply without a number gets the lowest."""
    import openai

    sampling, url = grader.sampling_params, objective.grader_url
    assert url is not None, "the configuration refuses this"
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    request: dict[str, Any] = {
        "model": grader.model,
        "messages": [{"role": role, "content": text} for role, text in turns],
        "max_tokens": sampling.max_completions_tokens or _MAX_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "score", "strict": True, "schema": _SCHEMA},
        },
    }
    request |= {key: value for key, value in fields.items() if value is not None}
    try:
        reply = _client(url, objective.grader_api_key_env).chat.completions.create(**request)
    except openai.OpenAIError as error:
        raise RecipeError(
            f"The grader {grader.name!r} asks the model {grader.model!r} at {url}: {error}. Name a model that is "
            "served there, and see that the server answers."
        ) from error
    return _number(reply.choices[0].message.content or "", *grader.range)


def _number(reply: str, lowest: float, highest: float) -> float:
    try:
        return min(max(float(json.loads(reply)["result"]), lowest), highest)
    except (ValueError, TypeError, KeyError, RecursionError):
        return lowest


@lru_cache(maxsize=4)
def _client(url: str, api_key_env: str | None) -> "openai.OpenAI":
    """The key is read here, at the edge: settings hold only the name of the variable."""
    import openai

    key = os.environ.get(api_key_env, "") if api_key_env else ""
    return openai.OpenAI(base_url=url, api_key=key or "none", max_retries=5, timeout=_TIMEOUT_S)
