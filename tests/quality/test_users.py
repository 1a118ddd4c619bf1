"""Users as the unit of evidence: how often a verdict is wrong where few users send most of the traffic, and its power.

Each trial draws users, their traffic (Zipf), their own rates and their version, feeds request after request to the
users' means, and looks after every one of them. Run with `pytest -s` to see the figures.
"""

from math import inf, log

import numpy as np
import pytest

from adapters.store.manifest import QualityRules
from quality.betting import log_wealth
from quality.users import MAX_REQUESTS, MAX_USERS, MAX_WAIT_S, UserMean, UserMeans
from quality.verdict import Evidence, Observation, decide, pair_in_time

ALPHA = QualityRules().alpha
LIMIT = QualityRules().max_slow_increase
RATES = {
    "heavy users are slow": lambda rank, rng: np.where(rank < max(1, len(rank) // 8), 0.3, 0.02),
    "heavy users are fast": lambda rank, rng: np.where(rank < max(1, len(rank) // 8), 0.02, 0.3),
    "users differ": lambda rank, rng: rng.beta(0.3, 2.7, len(rank)),
    "all or nothing": lambda rank, rng: 0.9 * (rng.random(len(rank)) < 0.3),
    "users are alike": lambda rank, rng: np.full(len(rank), 0.05),
}
FEW = {"num_users": 4, "num_requests": 600}
SOME_RATES = ("heavy users are slow", "users differ")
"""The slow tests have all of `RATES`, and more users."""


def counted(rng, num_users, num_requests, weight, worse, rates, ramp=False):
    """Stable's and the canary's users, as they come to count; one request a second.

    `ramp` raises the weight in the middle, so that users move to the canary.
    """
    rank = np.arange(num_users)
    traffic = 1.0 / (rank + 1)
    share = rng.random(num_users)
    rate = RATES[rates](rank, rng)
    users = rng.choice(num_users, num_requests, p=traffic / traffic.sum())
    now_weight = np.where(np.arange(num_requests) < num_requests // 2, weight / 5, weight) if ramp else weight
    on_canary = share[users] < now_weight
    is_bad = rng.random(num_requests) < rate[users] + worse * on_canary
    means = UserMeans()
    seen: tuple[list[Observation], list[Observation]] = ([], [])
    for at, (user, side, value) in enumerate(zip(users.tolist(), on_canary.tolist(), is_bad.tolist(), strict=True)):
        mean = means.add(str(user), side, at, value)
        for one in (*means.close_due(at), *([mean] if mean else [])):
            seen[one.is_canary].append(Observation(at, one.value, one.user))
    return tuple(map(tuple, seen))


def state(stable, canary, *, limit=LIMIT):
    """The first state that is not open, looking after each pair, and the pairs that it took."""
    pairs = np.array(pair_in_time(stable, canary)).reshape(-1, 2)
    harm = pairs[:, 1] - pairs[:, 0]
    within = first(running_log_wealth((1 - harm) / 2, (1 - limit) / 2) > log(1 / ALPHA))
    beyond = first(running_log_wealth((1 + harm) / 2, (1 + limit) / 2) > log(3 / ALPHA))
    if within == beyond:
        return "open", inf
    return ("within", within) if within < beyond else ("beyond", beyond)


def running_log_wealth(values, mean):
    """(n,) of the first 1, 2, ... n values."""
    if not len(values):
        return np.empty(0)
    return log_wealth(values, np.tri(len(values)), mean)


def first(is_reached):
    return float(is_reached.argmax()) + 1 if is_reached.any() else inf


def shares(num_trials, seed, **setup):
    """How often each state was the first, and the median of the pairs that it took."""
    rng = np.random.default_rng(seed)
    limit = setup.pop("limit", LIMIT)
    ends = [state(*counted(rng, **setup), limit=limit) for _ in range(num_trials)]
    decided = [pairs for name, pairs in ends if name != "open"]
    return (
        {name: sum(end == name for end, _ in ends) / num_trials for name in ("within", "open", "beyond")},
        float(np.median(decided)) if decided else inf,
    )


def most(num_trials, chance=ALPHA):
    """A share that a chance of at most `chance` exceeds in one of a thousand such simulations, by the normal bound."""
    return chance + 3.1 * np.sqrt(chance * (1 - chance) / num_trials)


def evidence_until(at_s, side):
    return Evidence(slow=tuple(seen for seen in side if seen.at_s <= at_s))


def test_the_simulation_decides_as_decide_does():
    rng, policy = np.random.default_rng(3), QualityRules(min_pairs=1)
    stable, canary = counted(rng, 60, 3000, 0.5, 0.8, "users are alike")
    end, pairs = state(stable, canary)
    times = sorted({seen.at_s for seen in (*stable, *canary)})
    states = [decide(evidence_until(at_s, stable), evidence_until(at_s, canary), policy) for at_s in times]
    slow = [verdict.comparisons[2] for verdict in states]
    first_decided = next(comparison for comparison in slow if comparison.state != "open")
    assert (first_decided.state, first_decided.num_pairs) == (end, pairs)


@pytest.mark.parametrize("weight", [0.3, 0.5])
@pytest.mark.parametrize("rates", SOME_RATES)
def test_equal_weights_are_not_rolled_back_for_who_their_users_are(rates, weight):
    ends, _ = shares(60, 11, **FEW, weight=weight, worse=0.0, rates=rates)
    assert ends["beyond"] <= most(60, ALPHA / 3)


@pytest.mark.parametrize("rates", SOME_RATES)
def test_a_canary_that_is_worse_by_the_limit_is_not_found_within(rates):
    ends, _ = shares(60, 12, **FEW, weight=0.3, worse=LIMIT, rates=rates)
    assert ends["within"] <= most(60)


@pytest.mark.slow
@pytest.mark.parametrize("ramp", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("worse", [0.0, LIMIT])
def test_alpha_holds_with_four_hundred_users_also_while_the_weight_is_raised(worse, rates, ramp):
    ends, pairs = shares(150, 13, num_users=400, num_requests=9000, weight=0.5, worse=worse, rates=rates, ramp=ramp)
    print(f"\n400 users, {rates}, canary worse by {worse}, ramp {ramp}: {ends}, median of {pairs:.0f} pairs")
    assert ends["beyond"] <= most(150, ALPHA / 3)  # also exactly at the limit
    assert ends["within"] <= (most(150) if worse else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("weight", [0.3, 0.5])
@pytest.mark.parametrize("num_users", [4, pytest.param(8, marks=pytest.mark.exhaustive), 50])
def test_alpha_holds_in_many_trials_of_few_users(num_users, weight, rates):
    setup = {"num_users": num_users, "num_requests": 2000, "weight": weight, "rates": rates}
    equal, _ = shares(400, 14, worse=0.0, **setup)
    worse, _ = shares(400, 15, worse=LIMIT, **setup)
    print(f"\n{num_users} users, canary for {weight:.0%}, {rates}: equal {equal}; worse by {LIMIT} {worse}")
    assert equal["beyond"] <= most(400, ALPHA / 3)
    assert worse["within"] <= most(400)
    assert worse["beyond"] <= most(400, ALPHA / 3)


@pytest.mark.slow
def test_harm_to_a_few_users_is_not_averaged_away_by_the_traffic_of_others():
    """One user in ten gets nothing but slow answers; each sends little beside the heaviest."""
    rng = np.random.default_rng(16)
    num_trials = 60
    wrong = 0
    for _ in range(num_trials):
        stable, canary = counted(rng, 300, 6000, 0.5, 0.0, "users are alike")
        hurt = tuple(one._replace(value=1.0) if rng.random() < 0.1 else one for one in canary)
        wrong += state(stable, hurt)[0] == "within"
    assert wrong / num_trials <= most(num_trials)


@pytest.mark.parametrize(
    ("weight", "worse", "least"),
    [
        (0.5, 0.5, 0.8),
        (0.3, 0.7, 0.6),
        *(
            pytest.param(*harm, marks=pytest.mark.slow)
            for harm in ((0.5, 0.7, 0.95), (0.3, 0.5, 0.15), (0.5, 0.95, 0.95), (0.3, 0.95, 0.85))
        ),
    ],
)
def test_a_clear_harm_is_found_with_fifty_users(weight, worse, least):
    ends, pairs = shares(60, 17, num_users=50, num_requests=1800, weight=weight, worse=worse, rates="users are alike")
    print(f"\n50 users, canary for {weight:.0%}, worse by {worse}: {ends}, after {pairs:.0f} pairs of users")
    assert ends["beyond"] >= least


@pytest.mark.slow
def test_a_thousand_users_prove_an_equal_canary_within():
    ends, pairs = shares(20, 18, num_users=1000, num_requests=15000, weight=0.5, worse=0.0, rates="users are alike")
    print(f"\n1000 users, equal, limit {LIMIT}: {ends}, after {pairs:.0f} pairs of users")
    assert ends["within"] >= 0.6


def test_a_user_counts_after_twenty_requests_and_never_again():
    means = UserMeans()
    counts = [means.add("ada", True, 0.0, float(number % 2)) for number in range(3 * MAX_REQUESTS)]
    assert [count for count in counts if count] == [UserMean("ada", True, 0.5, MAX_REQUESTS)]
    assert counts[MAX_REQUESTS - 1] is not None


def test_a_user_counts_for_the_version_that_answered_first():
    means = UserMeans()
    means.add("ada", False, 0.0, 0.0)
    for _ in range(2 * MAX_REQUESTS):
        assert means.add("ada", True, 1.0, 1.0) is None
    assert means.close_due(MAX_WAIT_S) == [UserMean("ada", False, 0.0, 1)]


def test_users_whose_time_is_up_count_in_the_order_of_their_first_request():
    means = UserMeans()
    for at_s, user, value in ((0.0, "ada", 1.0), (1.0, "bob", 0.0), (2.0, "ada", 0.0), (3.0, "kim", 1.0)):
        means.add(user, False, at_s, value)
    assert means.close_due(MAX_WAIT_S + 1.0) == [UserMean("ada", False, 0.5, 2), UserMean("bob", False, 0.0, 1)]
    assert means.close_due(MAX_WAIT_S + 1.0) == []


def test_a_user_who_never_comes_again_counts_at_once():
    assert UserMeans().add("r-1", True, 0.0, 1.0, max_requests=1) == UserMean("r-1", True, 1.0, 1)


def test_a_flood_of_made_up_users_does_not_fill_the_memory():
    means = UserMeans(f"u{number}" for number in range(MAX_USERS - 1))
    assert means.add("first", False, 0.0, 1.0) is None  # waits for more requests
    assert means.add("one too many", False, 1.0, 1.0, max_requests=1) is None
    assert means.close_due(MAX_WAIT_S) == [UserMean("first", False, 1.0, 1)]
