"""The reward of an answer: a weighted sum of the domain's own scorers, each from 0 to 1, and of a reward model's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.dataset import DatasetRow, Message
from config.domain import DomainConfig
from config.objective import ReinforcementObjective
from config.rows import PromptRow
from quality.scorers import AnswerFormat, is_exact_match
from train.evaluate.stops import until_stop


@dataclass(frozen=True)
class RewardedPrompt:
    """A prompt, the answer that the row expects (None: the row has none), and the row's columns for graders."""

    prompt: tuple[Message, ...]
    expected: str | None
    item: Mapping[str, Any] = field(default_factory=dict)


ScoreAnswers = Callable[[Sequence[RewardedPrompt], Sequence[str]], list[float]]
"""One number for each question and its answer."""

GRADER_PART = "grader"


@dataclass(frozen=True)
class RewardPart:
    """One scorer and its weight."""

    name: str
    weight: float
    score: ScoreAnswers


@dataclass(frozen=True)
class AnswerReward:
    """What reinforcement maximises.

    Attributes:
        stop: Stop strings; an answer is scored up to its first one, as evaluation and clients get it.
    """

    parts: tuple[RewardPart, ...]
    stop: tuple[str, ...] = ()

    def ended(self, answer: str) -> str:
        """The answer up to its first stop string."""
        return until_stop(answer, self.stop)

    def of_each_part(self, questions: Sequence[RewardedPrompt], answers: Sequence[str]) -> list[list[float]]:
        """(parts, answers), before weighting."""
        ended = [self.ended(answer) for answer in answers]
        return [part.score(questions, ended) for part in self.parts]

    def of(self, questions: Sequence[RewardedPrompt], answers: Sequence[str]) -> list[float]:
        by_part = self.of_each_part(questions, answers)
        return [
            sum(part.weight * score for part, score in zip(self.parts, scores, strict=True))
            for scores in zip(*by_part, strict=True)
        ]

    @property
    def best(self) -> float | None:
        """Reward of a perfect answer; None with a reward model or a grader, whose scores may have any bound."""
        unbounded = (MODEL_PART, GRADER_PART)
        return None if any(part.name in unbounded for part in self.parts) else sum(p.weight for p in self.parts)


MODEL_PART = "reward_model"
_MAX_POINTS = 20


def domain_reward(
    config: DomainConfig, model_score: ScoreAnswers | None = None, grade: ScoreAnswers | None = None
) -> AnswerReward:
    """The reward that the domain's objective names.

    Args:
        model_score: Scores of `objective.reward_model`, added with weight 1.
        grade: Scores of `objective.grader`, added with weight 1.
    """
    objective = config.objective
    assert isinstance(objective, ReinforcementObjective)
    weights = objective.reward_weights
    parts = []
    if weights.exact_match:
        parts.append(RewardPart("exact_match", weights.exact_match, _exact_match))
    if weights.valid_format:
        answer_format = AnswerFormat(config.answer.json_schema, config.quality.answer_pattern)
        parts.append(RewardPart("valid_format", weights.valid_format, _valid_format(answer_format)))
    if model_score is not None:
        parts.append(RewardPart(MODEL_PART, 1.0, model_score))
    if grade is not None:
        parts.append(RewardPart(GRADER_PART, 1.0, grade))
    return AnswerReward(tuple(parts), config.evaluation.stop)


def question_of(row: DatasetRow | PromptRow) -> RewardedPrompt:
    if isinstance(row, DatasetRow):
        return RewardedPrompt(row.prompt, row.output)
    return RewardedPrompt(row.messages, None, row.item)


def reward_curve(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`reward_step_5`, `eval_reward_step_20`… of a trainer's log: mean rewards of sampled and of held-out answers.

    At most `_MAX_POINTS` of each, evenly spread, the last included; empty for other objectives.
    """
    curve: dict[str, float] = {}
    for name in ("reward", "eval_reward"):
        points = [entry for entry in history if name in entry][::-1]
        kept = points[:: -(-len(points) // _MAX_POINTS) or 1][::-1]
        curve |= {f"{name}_step_{entry['step']:.0f}": round(entry[name], 4) for entry in kept}
    return curve


def _exact_match(questions: Sequence[RewardedPrompt], answers: Sequence[str]) -> list[float]:
    return [
        float(question.expected is not None and is_exact_match(answer, question.expected))
        for question, answer in zip(questions, answers, strict=True)
    ]


def _valid_format(answer_format: AnswerFormat) -> ScoreAnswers:
    return lambda questions, answers: [float(answer_format.accepts(answer)) for answer in answers]
