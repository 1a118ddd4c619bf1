"""Check before reinforcement: the reward must tell right answers from wrong ones, on the domain's own rows.

A right answer is the expected one, as the model could give it: cut at the first stop string, and at the longest
completion. Wrong are the answers of other rows, the refusal, half the answer, garbage, and no answer. Each kind is
compared with the right answers by its AUC: how often a right answer has the higher reward; equal rewards count half.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from config.domain import DomainConfig
from quality.scorers import is_exact_match
from train.errors import DataError, RecipeError
from train.objectives.rewards import MODEL_PART, AnswerReward, RewardedPrompt

MIN_AUC = 0.75
"""Of each kind of wrong answers: 0.5 tells nothing, 1 everything. A reward model need not be perfect."""
MAX_ROWS = 200
GARBAGE = "%$ ~ @@ qzx"

_SHOWN_CHARS = 60

logger = logging.getLogger(__name__)

Reachable = Callable[[str], str]
"""An expected answer as the longest completion allows it."""


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong answer beside the right one of the same question."""

    kind: str
    question: RewardedPrompt
    right: str
    wrong: str


@dataclass(frozen=True)
class Separation:
    """How well the reward tells one kind of wrong answers from the right ones."""

    kind: str
    auc: float
    margin: float
    example: WrongAnswer
    right_reward: float
    wrong_reward: float


def check_reward(
    reward: AnswerReward,
    questions: Sequence[RewardedPrompt],
    config: DomainConfig,
    reachable: Reachable = lambda text: text,
) -> list[Separation]:
    """Measure each kind of wrong answers; of at most `MAX_ROWS` questions, evenly spread.

    Raises:
        RecipeError: The reward cannot tell, or needs expected answers that the rows lack.
    """
    expected = [question for question in questions if question.expected is not None]
    if not expected:
        _check_without_answers(reward, questions, config)
        return []
    silent = [question for question in expected if not (question.expected or "").strip()]
    if silent and any(part.name == "exact_match" for part in reward.parts):
        raise RecipeError(
            f"`objective: {config.objective.name}` rewards exact match of text, but {len(silent)} of {len(expected)} "
            "expected answers have none (tool calls have none). Leave those rows out."
        )
    sample = expected[:: max(len(expected) // MAX_ROWS, 1)][:MAX_ROWS]
    separations = [_separation(reward, group) for group in _by_kind(_wrong_answers(sample, config, reachable))]
    if not separations:
        raise RecipeError(
            f"`objective: {config.objective.name}`: no wrong answer differs from the expected ones, so the reward "
            f"cannot be checked: the first is {_shown(expected[0].expected)}. Give rows with answers in text."
        )
    worst = min(separations, key=lambda separation: separation.auc)
    if not worst.auc >= MIN_AUC:  # also for rewards that are not numbers
        raise RecipeError(
            _cannot_tell(worst, config, is_model_alone={part.name for part in reward.parts} == {MODEL_PART})
        )
    _warn_of_imperfect(reward, sample, reachable)
    told = "; ".join(f"{s.kind} {s.auc:.2f} (margin {s.margin:+.2f})" for s in separations)
    logger.info("the reward tells right answers from wrong ones of %d rows, AUC: %s", len(sample), told)
    return separations


def _check_without_answers(reward: AnswerReward, questions: Sequence[RewardedPrompt], config: DomainConfig) -> None:
    """Only what every good answer has in common can be rewarded then: its format, or a reward model's liking."""
    name, names = config.objective.name, {part.name for part in reward.parts}
    if "exact_match" in names:
        raise RecipeError(
            f"`objective: {name}` rewards exact match, but the rows have prompts only. Give rows with expected "
            "answers, or set `reward_weights: {exact_match: 0, valid_format: 1}` or `reward_model`."
        )
    if names != {"valid_format"}:
        return
    if config.answer.json_schema is None and config.quality.answer_pattern is None:
        raise RecipeError(
            f"`objective: {name}` rewards the format alone, and the domain has none, so every text but the empty one "
            "is right. Set `answer.json_schema` or `quality.answer_pattern`, or give rows with expected answers."
        )
    wrong = ("", GARBAGE)
    rewards = reward.of([questions[0]] * len(wrong), wrong)
    if max(rewards) > 0:
        accepted = wrong[rewards.index(max(rewards))]
        raise RecipeError(
            f"`objective: {name}`: the format of the answer accepts {accepted!r}, so the reward cannot tell right "
            "answers from wrong ones. Narrow `answer.json_schema` or `quality.answer_pattern`."
        )


def _wrong_answers(
    questions: Sequence[RewardedPrompt], config: DomainConfig, reachable: Reachable
) -> Iterator[WrongAnswer]:
    rights = [question.expected or "" for question in questions]
    for number, (question, right) in enumerate(zip(questions, rights, strict=True)):
        others = islice(cycle(rights), number + 1, number + len(rights))
        other = next((answer for answer in others if not is_exact_match(answer, right)), None)
        refusal = config.answer.refusal or config.quality.refusal
        kinds = {
            "another row's answer": other,
            "the refusal": refusal,
            "half the answer": right.strip()[: len(right.strip()) // 2],
            "garbage": GARBAGE,
            "no answer": "",
        }
        for kind, wrong in kinds.items():
            if wrong is not None and not is_exact_match(wrong, right):
                yield WrongAnswer(kind, question, reachable(right), wrong)


def _by_kind(answers: Iterator[WrongAnswer]) -> list[list[WrongAnswer]]:
    groups: dict[str, list[WrongAnswer]] = {}
    for answer in answers:
        groups.setdefault(answer.kind, []).append(answer)
    return list(groups.values())


def _separation(reward: AnswerReward, answers: Sequence[WrongAnswer]) -> Separation:
    questions = [answer.question for answer in answers]
    rights = reward.of(questions, [answer.right for answer in answers])
    wrongs = reward.of(questions, [answer.wrong for answer in answers])
    pairs = list(zip(rights, wrongs, strict=True))
    wins = [1.0 if right > wrong else 0.5 if right == wrong else 0.0 for right, wrong in pairs]
    worst = min(range(len(pairs)), key=lambda n: pairs[n][0] - pairs[n][1])
    margin = sum(right - wrong for right, wrong in pairs) / len(pairs)
    return Separation(answers[0].kind, sum(wins) / len(wins), margin, answers[worst], *pairs[worst])


def _cannot_tell(worst: Separation, config: DomainConfig, *, is_model_alone: bool) -> str:
    example = worst.example
    way_out = (
        "Train the reward model on pairs with such rejected answers, or weigh `exact_match` beside it, which tells all."
        if is_model_alone
        else _way_out(config)
    )
    cut = "" if example.right == example.question.expected else " (cut at the longest completion)"
    return (
        f"The reward of `objective: {config.objective.name}` cannot tell right answers from wrong ones: "
        f"{worst.kind} {_shown(example.wrong)} gets {worst.wrong_reward:g}, and the right answer "
        f"{_shown(example.right)}{cut} gets {worst.right_reward:g} (AUC {worst.auc:.2f}, at least {MIN_AUC} is "
        f"needed). {way_out}"
    )


def _way_out(config: DomainConfig) -> str:
    stop = f" at the stop strings {list(config.evaluation.stop)}" if config.evaluation.stop else ""
    return (
        "Set `objective.reward_weights`, and see that the expected answers have the domain's format, end"
        f"{stop or ' as expected'} and fit into `objective.max_completion_length`."
    )


def _warn_of_imperfect(reward: AnswerReward, questions: Sequence[RewardedPrompt], reachable: Reachable) -> None:
    """Expected answers that do not get the full reward: of another format than the domain's, or too long."""
    best = reward.best
    if best is None:
        return
    answers = [reachable(question.expected or "") for question in questions]
    rewards = reward.of(questions, answers)
    less = [answer for answer, got in zip(answers, rewards, strict=True) if got < best - 1e-9]
    if less:
        logger.warning(
            "%d of %d expected answers get less than the full reward %g, first %s: their format is not the domain's, "
            "or they do not end within `max_completion_length` and at the stop strings",
            len(less), len(answers), best, _shown(less[0]),
        )  # fmt: skip


def _shown(text: str | None) -> str:
    text = text or ""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def check_learnable(num_prompts: int, prompts_per_step: int) -> None:
    """Check that the rows suffice for one step: TRL drops an incomplete step, and would train on nothing.

    Raises:
        DataError: They do not.
    """
    if num_prompts < prompts_per_step:
        raise DataError(
            f"A step takes {prompts_per_step} prompts (`recipe.per_device_train_batch_size` times "
            f"`recipe.gradient_accumulation_steps` by `objective.num_generations`), but there are {num_prompts}. "
            "Give more rows, or set smaller batches."
        )
