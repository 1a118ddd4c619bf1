"""Verdicts: what they say, and how often they are wrong when one looks after every observation.

The simulations go through `log_wealth` for all streams at once; one test holds that to what `decide` does.
Run with `pytest -s` to see the figures.
"""

from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.store.manifest import QualityRules
from quality.betting import _FRACTIONS, log_wealth
from quality.verdict import FEW_USERS_ADVICE, Evidence, Observation, decide, least_pairs, pair_in_time
from tests.examples import at_most

POLICY = QualityRules()
HARMS = np.array([-1.0, 0.0, 1.0])
# A busy machine is slow, not wrong.
MODERATE = at_most(50)


def seen(values, start_s=0.0):
    """One observation a second, each of another user."""
    return tuple(Observation(start_s + i, float(value), f"user {i}") for i, value in enumerate(values))


def healthy(num, score=1.0):
    return Evidence(scores=seen([score] * num), errors=seen([0] * num), slow=seen([0] * num))


def share(num_ones, num):
    """`num_ones` ones among zeros, evenly spread."""
    return [int((i + 1) * num_ones / num) - int(i * num_ones / num) for i in range(num)]


def harm_counts(stable, canary, worse):
    """(streams, pairs, 3) how often a pair's harm was -1, 0 and 1 so far."""
    harm = worse * (canary.astype(int) - stable.astype(int))
    return np.stack([(harm == value).cumsum(axis=1) for value in HARMS], axis=-1)


def first(is_reached):
    """(streams,) pairs until it is first reached; infinite where it never is."""
    return np.where(is_reached.any(axis=1), is_reached.argmax(axis=1) + 1.0, inf)


def pairs_until_within(counts, most_worse, alpha):
    return first(log_wealth((1 - HARMS) / 2, counts, (1 - most_worse) / 2) > log(1 / alpha))


def pairs_until_beyond(counts, most_worse, alpha):
    return first(log_wealth((1 + HARMS) / 2, counts, (1 + most_worse) / 2) > log(3 / alpha))


def coins(rng, chance, shape):
    return rng.random(shape) < chance


@pytest.mark.slow
def test_the_simulations_decide_exactly_when_decide_does():
    rng = np.random.default_rng(3)
    stable, canary = coins(rng, 0.9, (1, 60)), coins(rng, 0.2, (1, 60))
    fall = int(pairs_until_beyond(harm_counts(stable, canary, -1), POLICY.margin, POLICY.alpha)[0])
    rise = int(pairs_until_within(harm_counts(canary, stable, -1), POLICY.margin, POLICY.alpha)[0])
    states = [
        [
            decide(Evidence(scores=seen(one[0, :n])), Evidence(scores=seen(other[0, :n])), QualityRules(min_pairs=1))
            for n in range(1, 61)
        ]
        for one, other in ((stable, canary), (canary, stable))
    ]
    assert [verdict.action for verdict in states[0]].index("rollback") + 1 == fall
    assert [verdict.comparisons[0].state for verdict in states[1]].index("within") + 1 == rise


@pytest.mark.slow
def test_a_canary_at_the_margin_is_promoted_with_at_most_alpha_whenever_one_looks():
    rng = np.random.default_rng(4)
    counts = harm_counts(coins(rng, 0.57, (400, 1500)), coins(rng, 0.57 - POLICY.margin, (400, 1500)), -1)
    rate = np.isfinite(pairs_until_within(counts, POLICY.margin, POLICY.alpha)).mean()
    print(f"\nfalse promotions, 1500 looks at a canary exactly at the margin: {rate:.3f} (alpha {POLICY.alpha})")
    assert 0 < rate <= POLICY.alpha


@pytest.mark.slow
def test_a_canary_at_every_limit_is_rolled_back_with_at_most_alpha_whenever_one_looks():
    rng = np.random.default_rng(5)
    shape = (400, 1500)
    criteria = [
        (0.57, 0.57 - POLICY.margin, -1, POLICY.margin),
        (0.01, 0.01 + POLICY.max_error_increase, 1, POLICY.max_error_increase),
        (0.05, 0.05 + POLICY.max_slow_increase, 1, POLICY.max_slow_increase),
    ]
    beyond = [
        np.isfinite(
            pairs_until_beyond(harm_counts(coins(rng, a, shape), coins(rng, b, shape), worse), limit, POLICY.alpha)
        )
        for a, b, worse, limit in criteria
    ]
    rate = np.any(beyond, axis=0).mean()
    print(f"\nfalse rollbacks, 1500 looks at a canary exactly at all three limits: {rate:.3f} (alpha {POLICY.alpha})")
    assert 0 < rate <= POLICY.alpha


@pytest.mark.slow
def test_an_equal_canary_is_rolled_back_for_its_score_with_at_most_a_third_of_alpha():
    rng = np.random.default_rng(6)
    counts = harm_counts(coins(rng, 0.57, (400, 1500)), coins(rng, 0.57, (400, 1500)), -1)
    rate = np.isfinite(pairs_until_beyond(counts, POLICY.margin, POLICY.alpha)).mean()
    print(f"\nrollbacks in 1500 looks at an equal canary: {rate:.4f} (at most {POLICY.alpha / 3:.4f})")
    assert rate <= POLICY.alpha / 3


def graded(rng, mean, shape, kind):
    """Scores of answers: shares of five JSON fields, or continuous ones that are often exactly 0 or 1, as ROUGE's."""
    if kind == "fields":
        return rng.binomial(5, mean, shape) / 5
    return np.clip(rng.beta(mean * 0.6, (1 - mean) * 0.6, shape), 0, 1)


def wealth(values, mean):
    """(streams, pairs) log of the wealth after each pair, as `log_wealth` has it of counts."""
    total = np.zeros((*values.shape, len(_FRACTIONS)))
    for column, fraction in enumerate(_FRACTIONS):
        total[..., column] = np.log1p(fraction * (values / mean - 1)).cumsum(axis=1)
    return np.logaddexp.reduce(total, axis=-1) - log(len(_FRACTIONS))


def graded_harm(rng, stable, canary, kind, shape=(300, 800)):
    """(streams, pairs) of independent answers with these mean scores."""
    return graded(rng, stable, shape, kind) - graded(rng, canary, shape, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fields", "rouge"])
def test_graded_scores_decide_exactly_when_decide_does(kind):
    rng = np.random.default_rng(11)
    stable, canary = graded(rng, 0.8, (1, 80), kind), graded(rng, 0.3, (1, 80), kind)
    harm = stable - canary
    fall = int(first(wealth((1 + harm) / 2, (1 + POLICY.margin) / 2) > log(3 / POLICY.alpha))[0])
    actions = [
        decide(
            Evidence(scores=seen(stable[0, :n])), Evidence(scores=seen(canary[0, :n])), QualityRules(min_pairs=1)
        ).action
        for n in range(1, 81)
    ]
    assert actions.index("rollback") + 1 == fall


@pytest.mark.parametrize("kind", ["fields", "rouge"])
@pytest.mark.parametrize("stable", [0.9, pytest.param(0.5, marks=pytest.mark.slow)])
def test_graded_scores_promote_a_canary_at_the_margin_with_at_most_alpha(kind, stable):
    harm = graded_harm(np.random.default_rng(12), stable, stable - POLICY.margin, kind)
    rate = np.isfinite(first(wealth((1 - harm) / 2, (1 - POLICY.margin) / 2) > log(1 / POLICY.alpha))).mean()
    print(f"\n{kind} at {stable}: false promotions at the margin {rate:.3f} (alpha {POLICY.alpha})")
    assert rate <= POLICY.alpha


@pytest.mark.parametrize("kind", ["fields", "rouge"])
@pytest.mark.parametrize("stable", [0.9, pytest.param(0.5, marks=pytest.mark.slow)])
def test_graded_scores_roll_back_a_canary_at_the_margin_with_at_most_a_third_of_alpha(kind, stable):
    harm = graded_harm(np.random.default_rng(13), stable, stable - POLICY.margin, kind)
    rate = np.isfinite(first(wealth((1 + harm) / 2, (1 + POLICY.margin) / 2) > log(3 / POLICY.alpha))).mean()
    print(f"\n{kind} at {stable}: false rollbacks at the margin {rate:.4f} (at most {POLICY.alpha / 3:.4f})")
    assert rate <= POLICY.alpha / 3


@pytest.mark.slow
def test_graded_scores_need_fewer_pairs_than_right_or_wrong():
    rng = np.random.default_rng(14)
    right = coins(rng, 0.57, (300, 800)).astype(float) - coins(rng, 0.30, (300, 800))
    fields = graded_harm(rng, 0.57, 0.30, "fields")
    pairs = [
        float(np.median(first(wealth((1 + harm) / 2, (1 + POLICY.margin) / 2) > log(3 / POLICY.alpha))))
        for harm in (right, fields)
    ]
    print(f"\n0.57 -> 0.30: rolled back after {pairs[0]:.0f} pairs by right or wrong, {pairs[1]:.0f} by five fields")
    assert pairs[1] < pairs[0] / 2


def test_a_drop_from_057_to_030_takes_about_a_hundred_pairs_to_roll_back():
    rng = np.random.default_rng(7)
    counts = harm_counts(coins(rng, 0.57, (500, 500)), coins(rng, 0.30, (500, 500)), -1)
    pairs = pairs_until_beyond(counts, POLICY.margin, POLICY.alpha)
    median, p90 = np.quantile(pairs, [0.5, 0.9])
    print(f"\n0.57 -> 0.30, margin {POLICY.margin}: rolled back after {median:.0f} pairs of questions (p90 {p90:.0f})")
    assert median <= 120
    assert np.isfinite(pairs).all()


@pytest.mark.parametrize(
    ("margin", "share_alike", "most_pairs"),
    [
        pytest.param(0.05, 0.0, 1500, marks=pytest.mark.slow),
        pytest.param(0.10, 0.0, 400, marks=pytest.mark.slow),
        pytest.param(0.05, 0.8, 400, marks=pytest.mark.slow),
        (0.10, 0.8, 120),
    ],
)
def test_an_equal_canary_is_promoted(margin, share_alike, most_pairs):
    """`share_alike` of the answers agree because both versions got the same question."""
    rng = np.random.default_rng(8)
    shape = (200, 5000)
    stable = coins(rng, 0.57, shape)
    canary = np.where(coins(rng, share_alike, shape), stable, coins(rng, 0.57, shape))
    pairs = pairs_until_within(harm_counts(stable, canary, -1), margin, POLICY.alpha)
    median, p90 = np.quantile(pairs, [0.5, 0.9])
    print(f"\nequal at 0.57, margin {margin}, {share_alike:.0%} alike: within after {median:.0f} pairs (p90 {p90:.0f})")
    assert median <= most_pairs


@pytest.mark.parametrize(
    ("what", "stable", "canary", "limit", "most_pairs"),
    [
        ("error rate", 0.0, 0.10, POLICY.max_error_increase, 200),
        ("error rate", 0.0, 1.00, POLICY.max_error_increase, 15),
        ("slow share", 0.05, 0.50, POLICY.max_slow_increase, 60),
    ],
)
def test_a_canary_that_fails_or_crawls_is_rolled_back(what, stable, canary, limit, most_pairs):
    rng = np.random.default_rng(9)
    counts = harm_counts(coins(rng, stable, (200, 1000)), coins(rng, canary, (200, 1000)), 1)
    median = np.median(pairs_until_beyond(counts, limit, POLICY.alpha))
    print(f"\n{what} {stable} -> {canary}, limit +{limit}: rolled back after {median:.0f} pairs of requests")
    assert median <= most_pairs


def test_a_canary_without_errors_is_proven_so_after_some_hundred_requests():
    counts = harm_counts(np.zeros((1, 1000)), np.zeros((1, 1000)), 1)
    pairs = pairs_until_within(counts, POLICY.max_error_increase, POLICY.alpha)[0]
    print(f"\nno errors on either side: within +{POLICY.max_error_increase} after {pairs:.0f} pairs of requests")
    assert pairs <= 300


def test_a_rush_hour_that_slows_both_rolls_nothing_back():
    rng = np.random.default_rng(10)
    chances = np.repeat([0.05, 0.7], 1000)
    is_slow, is_canary = coins(rng, chances, 2000), coins(rng, 0.1, 2000)
    requests = list(zip(seen(is_slow), is_canary, strict=True))
    stable = Evidence(slow=tuple(one for one, canary in requests if not canary))
    canary = Evidence(slow=tuple(one for one, canary in requests if canary))
    comparison = decide(stable, canary, POLICY).comparisons[2]
    assert comparison.state != "beyond"
    assert comparison.stable > 0.3  # the pairs are of the same hours, not of the first ones


def test_no_evidence_holds_and_says_what_is_missing():
    verdict = decide(Evidence(), Evidence(), POLICY)
    assert verdict.action == "hold"
    assert verdict.reason.startswith("canary score has no pair of observations yet; error rate has no pair of users")


@pytest.mark.parametrize(("stable", "canary"), [(healthy(50), Evidence()), (Evidence(), healthy(50))])
def test_evidence_of_one_version_alone_holds(stable, canary):
    assert decide(stable, canary, POLICY).action == "hold"


def test_a_canary_without_questions_is_held_however_well_it_answers():
    canary = Evidence(errors=seen([0] * 1000), slow=seen([0] * 1000))
    verdict = decide(healthy(1000), canary, POLICY)
    assert (verdict.action, verdict.reason) == ("hold", "canary score has no pair of observations yet")


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_scores_that_never_vary_promote_an_equal_canary(score):
    assert decide(healthy(300, score), healthy(300, score), POLICY).action == "promote"


def test_a_broken_canary_is_gone_as_soon_as_there_are_enough_pairs():
    actions = [decide(healthy(n, 1.0), healthy(n, 0.0), POLICY).action for n in (19, 20)]
    assert actions == ["hold", "rollback"]


def test_a_rollback_tells_the_figures_of_what_failed():
    stable = Evidence(scores=seen(share(57, 100)), errors=seen([0] * 100))
    canary = Evidence(scores=seen(share(20, 100)), errors=seen([0] * 100))
    verdict = decide(stable, canary, POLICY)
    score = verdict.comparisons[0]
    assert verdict.action == "rollback"
    assert verdict.reason == (
        "canary score 0.200 is more than 0.05 worse than stable's 0.570 "
        f"(difference -0.370 [{score.ci_low:+.3f}, {score.ci_high:+.3f}] after 100 pairs)"
    )
    assert score.ci_low < -0.37 < score.ci_high < -0.05


def test_a_promotion_tells_all_three_comparisons():
    verdict = decide(healthy(400), healthy(400), POLICY)
    assert verdict.action == "promote"
    assert verdict.reason.startswith(
        "canary score 1.000 is less than 0.05 worse than stable's 1.000 (difference +0.000"
    )
    assert "error rate 0.000 is less than 0.02 worse" in verdict.reason
    assert "slow share 0.000 is less than 0.05 worse" in verdict.reason


@pytest.mark.parametrize("guard", ["errors", "slow"])
def test_a_guard_alone_rolls_back_a_canary_whose_answers_are_good(guard):
    canary = Evidence(**{**vars(healthy(400)), guard: seen(share(120, 400))})
    verdict = decide(healthy(400), canary, POLICY)
    assert verdict.action == "rollback"
    assert "0.300 is more than" in verdict.reason
    assert "score" not in verdict.reason


def test_a_stricter_margin_never_promotes_what_a_looser_one_holds():
    evidence = healthy(300)
    actions = [decide(evidence, evidence, QualityRules(margin=margin)).action for margin in (0.0, 0.01, 0.05, 0.2)]
    assert actions == ["hold", "hold", "promote", "promote"]


@MODERATE
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_a_better_answer_never_speaks_against_the_canary(scores):
    stable = Evidence(scores=seen(stable for stable, _, _ in scores))
    before, after = (
        decide(stable, Evidence(scores=seen(canary)), POLICY).comparisons[0]
        for canary in ([score for _, score, _ in scores], [max(score, other) for _, score, other in scores])
    )
    assert after.ci_low >= before.ci_low - 1e-8
    assert after.ci_high >= before.ci_high - 1e-8


@pytest.mark.parametrize("value", [nan, inf, -0.1, 1.1])
@pytest.mark.parametrize("kind", ["scores", "errors", "slow"])
def test_a_value_that_is_no_share_is_refused(kind, value):
    with pytest.raises(ValueError, match=f"{kind} must hold finite times and values from 0 to 1"):
        Evidence(**{kind: (Observation(0.0, 0.5), Observation(1.0, value))})


def test_a_time_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite times"):
        Evidence(scores=(Observation(nan, 0.5),))


def test_each_observation_meets_the_latest_unused_one_of_the_other_version():
    stable = [Observation(1, 0.1), Observation(2, 0.2), Observation(3, 0.3)]
    canary = [Observation(0, 0.0), Observation(3.5, 0.35), Observation(4, 0.4), Observation(5, 0.5)]
    assert pair_in_time(stable, canary) == [(0.1, 0.0), (0.3, 0.35), (0.2, 0.4)]
    assert pair_in_time(canary, stable) == [(0.0, 0.1), (0.35, 0.3), (0.4, 0.2)]  # neither version is favoured


def test_requests_without_a_user_are_one_users():
    observations = tuple(Observation(i, 1.0) for i in range(500))
    verdict = decide(healthy(500), Evidence(scores=seen([1] * 500), errors=observations, slow=observations), POLICY)
    assert verdict.action == "hold"
    assert [comparison.num_pairs for comparison in verdict.comparisons] == [500, 1, 1]


def test_only_the_first_observation_of_a_user_counts():
    again = tuple(Observation(i, float(i >= 60), f"user {i % 60}") for i in range(600))
    comparison = decide(Evidence(errors=seen([0] * 600)), Evidence(errors=again), POLICY).comparisons[1]
    assert (comparison.num_pairs, comparison.canary, comparison.state) == (60, 0.0, "open")


def test_a_hold_says_how_many_users_there_are_and_how_many_it_takes():
    evidence = Evidence(scores=seen([1] * 300), errors=seen([0] * 3), slow=seen([0] * 300))
    verdict = decide(evidence, evidence, POLICY)
    assert verdict.action == "hold"
    assert (
        "after 3 pairs of users; too few users: 3 of the canary and 3 of stable, to prove no harm takes 242 of each"
        in (verdict.reason)
    )
    assert verdict.reason.endswith(FEW_USERS_ADVICE)


def test_a_limit_of_zero_says_that_no_number_of_users_proves_it():
    verdict = decide(healthy(50), healthy(50), QualityRules(max_error_increase=0.0))
    assert "to prove no harm is not possible with a limit of 0" in str(verdict.comparisons[1])


def test_an_open_comparison_of_many_users_gives_no_advice():
    slow = Evidence(slow=seen(share(15, 300)))
    verdict = decide(healthy(300), Evidence(**{**vars(healthy(300)), "slow": slow.slow}), POLICY)
    assert verdict.action == "hold"
    assert "too few users" not in verdict.reason


@pytest.mark.parametrize(("most_worse", "least"), [(0.05, 96), (0.02, 242), (0.0, None)])
def test_a_canary_without_any_difference_is_within_after_so_many_pairs(most_worse, least):
    assert least_pairs(most_worse, POLICY.alpha) == least


def test_a_users_requests_count_toward_the_least_number_of_pairs():
    """Twelve users of the canary that always fail are beyond chance, though they are fewer than `min_pairs`."""

    def of(value, num_requests):
        return tuple(Observation(i, value, f"user {i}", num_requests) for i in range(12))

    states = [
        decide(Evidence(errors=of(0.0, num)), Evidence(errors=of(1.0, num)), POLICY).comparisons[1].state
        for num in (1, 20)
    ]
    assert states == ["open", "beyond"]


@MODERATE
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=40), st.integers(0, 40))
def test_later_observations_never_change_a_pair(events, num_early):
    timed = [(is_canary, Observation(i, value)) for i, (is_canary, value) in enumerate(events)]

    def pairs(some):
        return pair_in_time([o for is_canary, o in some if not is_canary], [o for is_canary, o in some if is_canary])

    early = pairs(timed[:num_early])
    assert pairs(timed)[: len(early)] == early
