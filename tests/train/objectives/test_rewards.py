import pytest

from tests.rewarded import PROMPT, domain
from train.objectives.rewards import RewardedPrompt, domain_reward, reward_curve


@pytest.mark.parametrize(
    ("answer", "reward"),
    [('{"a": 1}', 1.5), ('{"a":1.0}', 1.5), ('{"a": 2}', 0.5), ('{"a": 3}', 0.0), ("no", 0.0), ('{"a": 1} and', 1.5)],
)
def test_reward_is_the_weighted_sum_of_the_scorers(answer: str, reward: float) -> None:
    config = domain({"name": "grpo", "reward_weights": {"exact_match": 1.0, "valid_format": 0.5}})
    assert domain_reward(config).of([RewardedPrompt(PROMPT, '{"a": 1}')], [answer]) == [reward]


def test_an_answer_is_rewarded_up_to_its_stop_string() -> None:
    reward = domain_reward(domain())
    assert reward.ended('{"a": 1}}} more') == '{"a": 1}'


def test_a_question_without_expected_answer_has_no_exact_match() -> None:
    assert domain_reward(domain()).of([RewardedPrompt(PROMPT, None)], [""]) == [0.0]


def test_a_reward_model_is_added_with_weight_one() -> None:
    reward = domain_reward(domain(), lambda questions, answers: [2.5] * len(answers))
    assert reward.of([RewardedPrompt(PROMPT, '{"a": 1}')], ['{"a": 1}']) == [3.5]
    assert reward.best is None


def test_the_reward_curve_has_few_points_and_the_last() -> None:
    history = [{"reward": n / 1000, "step": n} for n in range(5, 505, 5)] + [{"eval_reward": 0.5, "step": 500}]
    curve = reward_curve(history)
    assert len(curve) == 21
    assert curve["reward_step_500"] == 0.5
    assert curve["eval_reward_step_500"] == 0.5
    assert reward_curve([{"loss": 1.0, "step": 5}]) == {}
