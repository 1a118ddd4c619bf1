import logging

import pytest

from config.objective import RewardWeights
from tests.rewarded import PROMPT, domain
from train.errors import DataError, RecipeError
from train.objectives.reward_check import check_learnable, check_reward
from train.objectives.rewards import RewardedPrompt, domain_reward

RIGHT = [RewardedPrompt(PROMPT, f'{{"a": {1 + n % 2}}}') for n in range(6)]
BARE = [RewardedPrompt(PROMPT, None)] * 3
FORMAT_ONLY = {"name": "grpo", "reward_weights": {"exact_match": 0, "valid_format": 1}}


def test_exact_match_tells_every_kind_of_wrong_answer() -> None:
    config = domain()
    separations = check_reward(domain_reward(config), RIGHT, config)
    assert {separation.kind for separation in separations} == {
        "another row's answer",
        "the refusal",
        "half the answer",
        "garbage",
        "no answer",
    }
    assert {(separation.auc, separation.margin) for separation in separations} == {(1.0, 1.0)}


def test_a_reward_of_the_format_alone_is_refused() -> None:
    config = domain(FORMAT_ONLY)
    with pytest.raises(RecipeError, match=r"another row's answer '{.a.: 2}' gets 1, .* gets 1 "):
        check_reward(domain_reward(config), RIGHT, config)


def test_a_stop_string_inside_the_right_answers_is_refused() -> None:
    config = domain(evaluation={"stop": [":"], "max_new_tokens": 16})
    with pytest.raises(RecipeError, match=r"cannot tell.*at the stop strings \[':'\]"):
        check_reward(domain_reward(config), RIGHT, config)


def test_right_answers_longer_than_a_completion_are_refused() -> None:
    config = domain()
    with pytest.raises(RecipeError, match="cut at the longest completion"):
        check_reward(domain_reward(config), RIGHT, config, lambda text: text[:3])


MODEL_ALONE = {"name": "grpo", "reward_weights": {"exact_match": 0}, "reward_model": "liking@1"}


def test_a_reward_model_alone_that_knows_right_answers_is_taken() -> None:
    config = domain(MODEL_ALONE)
    likes = domain_reward(
        config,
        lambda questions, answers: [
            float(answer == question.expected) for question, answer in zip(questions, answers, strict=True)
        ],
    )
    assert {separation.auc for separation in check_reward(likes, RIGHT, config)} == {1.0}


def test_a_reward_model_that_likes_wrong_answers_is_refused() -> None:
    config = domain(MODEL_ALONE)
    reward = domain_reward(config, lambda questions, answers: [float(len(answer)) for answer in answers])
    with pytest.raises(RecipeError, match=r"garbage .* Train the reward model on pairs with such rejected answers, or"):
        check_reward(reward, RIGHT, config)


def test_a_reward_model_is_helped_by_exact_match() -> None:
    config = domain(MODEL_ALONE | {"reward_weights": {"exact_match": 1}})
    reward = domain_reward(config, lambda questions, answers: [0.01 * len(answer) for answer in answers])
    assert {separation.auc for separation in check_reward(reward, RIGHT, config)} == {1.0}


def test_prompts_alone_are_rewarded_by_a_model_alone() -> None:
    config = domain(MODEL_ALONE)
    assert check_reward(domain_reward(config, lambda questions, answers: [0.0] * len(answers)), BARE, config) == []


def test_a_reward_that_is_not_a_number_is_refused() -> None:
    config = domain(MODEL_ALONE)
    with pytest.raises(RecipeError, match="cannot tell"):
        check_reward(domain_reward(config, lambda questions, answers: [float("nan")] * len(answers)), RIGHT, config)


def test_expected_answers_without_text_are_refused() -> None:
    config = domain(answer={})
    with pytest.raises(RecipeError, match="but 1 of 7 expected answers have none"):
        check_reward(domain_reward(config), [*RIGHT, RewardedPrompt(PROMPT, "")], config)


def test_prompts_alone_cannot_be_rewarded_by_exact_match() -> None:
    config = domain()
    with pytest.raises(RecipeError, match=r"prompts only\. Give rows with expected answers"):
        check_reward(domain_reward(config), BARE, config)


def test_prompts_alone_can_be_rewarded_by_their_format() -> None:
    config = domain(FORMAT_ONLY)
    assert check_reward(domain_reward(config), BARE, config) == []


@pytest.mark.parametrize(
    ("answer", "quality", "message"),
    [({}, {}, "the domain has none"), ({}, {"answer_pattern": ".*"}, "accepts ''")],
)
def test_a_format_that_accepts_anything_is_refused(answer: object, quality: object, message: str) -> None:
    config = domain(FORMAT_ONLY, answer=answer, quality=quality)
    with pytest.raises(RecipeError, match=message):
        check_reward(domain_reward(config), BARE, config)


def test_expected_answers_of_another_format_are_told(caplog: pytest.LogCaptureFixture) -> None:
    weights = RewardWeights(exact_match=1, valid_format=0.1)
    config = domain({"name": "grpo", "reward_weights": weights.model_dump()})
    with caplog.at_level(logging.WARNING):
        check_reward(domain_reward(config), [*RIGHT, RewardedPrompt(PROMPT, '{"a": 3}')], config)
    assert "1 of 7 expected answers get less than the full reward 1.1, first '{\"a\": 3}'" in caplog.text


def test_too_few_prompts_for_a_step_are_refused() -> None:
    with pytest.raises(DataError, match=r"A step takes 4 prompts .* but there are 3"):
        check_learnable(3, 4)
