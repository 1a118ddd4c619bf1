"""Drift on synthetic streams with a fault in the middle. Run with `pytest -s` to see delays and false alarms."""

import numpy as np
import pytest
from pydantic import ValidationError

from quality.divergence import (
    jensen_shannon_divergence,
    ks_p_value,
    median_distance,
    population_stability_index,
    squared_mmd,
)
from quality.drift import DriftBaseline, Exchange, TokenFrequencies, alpha_at
from tests.narrowing import not_none

WINDOW = 50
NUM_TOKENS = 600
ZIPF = 1 / np.arange(1, 301)


def exchanges(rng, num, *, first_prompt_token=0, noise_share=0.0, mean_answer=12, logprob=-0.4, embedding_shift=None):
    """Prompts with Zipf's frequencies over 300 tokens; answers in a few words of their own, or noise."""
    return [
        Exchange(
            prompt_tokens=tuple(
                (first_prompt_token + rng.choice(300, size=rng.integers(10, 40), p=ZIPF / ZIPF.sum())).tolist()
            ),
            completion_tokens=tuple(
                rng.integers(
                    0, NUM_TOKENS if rng.random() < noise_share else 30, size=1 + rng.poisson(mean_answer)
                ).tolist()
            ),
            mean_logprob=logprob + 0.1 * rng.standard_normal(),
            embedding=None if embedding_shift is None else tuple((rng.standard_normal(8) + embedding_shift).tolist()),
        )
        for _ in range(num)
    ]


def looks_with_drift(baseline, windows):
    """Numbers of the looks that see drift."""
    return [k for k, window in enumerate(windows, 1) if baseline.look(window, k).is_drift]


def test_spending_over_all_looks_comes_to_alpha():
    assert sum(alpha_at(look, 0.05) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.slow
def test_a_long_stream_without_drift_is_called_drifting_with_at_most_alpha():
    """All looks of a stream share one baseline, as they do in use; later looks could add alpha / 21 at most."""
    rng, alpha, num_streams, num_looks = np.random.default_rng(11), 0.3, 60, 20
    alarms = 0
    for _ in range(num_streams):
        baseline = rng.standard_normal(60)
        p_values = [ks_p_value(baseline, rng.standard_normal(20)) for _ in range(num_looks)]
        alarms += any(p <= alpha_at(look, alpha) for look, p in enumerate(p_values, 1))
    print(f"\nfalse alarms in {num_looks} looks: {alarms / num_streams:.2f} of streams (alpha {alpha})")
    assert 0 < alarms / num_streams <= alpha


@pytest.mark.slow
def test_healthy_streams_raise_no_alarm():
    rng = np.random.default_rng(12)
    alarms = [
        looks_with_drift(DriftBaseline(exchanges(rng, 240)), [exchanges(rng, WINDOW) for _ in range(10)])
        for _ in range(6)
    ]
    print(f"\nhealthy: {sum(map(len, alarms))} alarms in {len(alarms)} streams of 10 looks at {WINDOW} exchanges")
    assert alarms == [[]] * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "settings", "feature", "most_looks"),
    [
        ("other domain's prompts", {"first_prompt_token": 250}, "prompt surprisal", 1),
        ("other frequent prompt words", {"first_prompt_token": 20}, "prompt surprisal", 1),
        ("all answers noise", {"noise_share": 1.0}, "answer surprisal", 1),
        ("half of the answers noise", {"noise_share": 0.5}, "answer surprisal", 4),
        ("answers twice as long", {"mean_answer": 24}, "answer length", 1),
        ("less sure by 0.15 nats", {"logprob": -0.55}, "mean log-probability", 2),
    ],
)
def test_a_fault_is_seen_soon_after_twenty_healthy_looks(fault, settings, feature, most_looks):
    rng = np.random.default_rng(13)
    baseline = DriftBaseline(exchanges(rng, 240))
    reports = [baseline.look(exchanges(rng, WINDOW, **settings), 20 + k) for k in range(1, 9)]
    delay = next(k for k, report in enumerate(reports, 1) if report.is_drift)
    print(f"\n{fault}: seen after {delay * WINDOW} exchanges; {reports[delay - 1].reason}")
    assert delay <= most_looks
    assert feature in reports[delay - 1].reason


@pytest.mark.slow
def test_noise_in_three_answers_of_ten_is_seen_in_windows_of_two_hundred():
    rng = np.random.default_rng(24)
    baseline = DriftBaseline(exchanges(rng, 240))
    seen = looks_with_drift(baseline, [exchanges(rng, 200, noise_share=0.3) for _ in range(3)])
    print(f"\n30% of the answers noise, windows of 200: looks {seen} of 3 see it")
    assert seen


def test_moved_embeddings_are_seen():
    rng = np.random.default_rng(14)
    baseline = DriftBaseline(exchanges(rng, 240, embedding_shift=0.0))
    same = baseline.look(exchanges(rng, WINDOW, embedding_shift=0.0), 1)
    moved = baseline.look(exchanges(rng, WINDOW, embedding_shift=1.0), 2)
    assert not same.is_drift
    assert "embedding similarity" in moved.reason
    assert not_none(moved.embedding_mmd2) > 0.05 > abs(not_none(same.embedding_mmd2))


def test_divergence_of_tokens_tells_the_fault_from_health():
    rng = np.random.default_rng(15)
    baseline = DriftBaseline(exchanges(rng, 240))
    same, noise = baseline.look(exchanges(rng, WINDOW), 1), baseline.look(exchanges(rng, WINDOW, noise_share=1.0), 2)
    assert not_none(same.completion_divergence) < 0.1 < 0.5 < not_none(noise.completion_divergence) < 1
    assert noise.prompt_divergence == pytest.approx(same.prompt_divergence, abs=0.1)


def test_a_quiet_look_says_so():
    rng = np.random.default_rng(16)
    report = DriftBaseline(exchanges(rng, 40)).look(exchanges(rng, 10), 7)
    assert report.reason == "look 7 at 10 exchanges found no drift"


def test_answers_that_fell_silent_are_seen_by_their_length():
    rng = np.random.default_rng(17)
    silent = [seen.model_copy(update={"completion_tokens": ()}) for seen in exchanges(rng, WINDOW)]
    report = DriftBaseline(exchanges(rng, 240)).look(silent, 1)
    assert report.reason.startswith("answer length is 0 on average")
    assert report.completion_divergence is None


def test_a_feature_that_one_side_lacks_is_not_judged():
    rng = np.random.default_rng(18)
    without = [seen.model_copy(update={"mean_logprob": None}) for seen in exchanges(rng, WINDOW, embedding_shift=0.0)]
    report = DriftBaseline(exchanges(rng, 240)).look(without, 1)
    assert [feature.name for feature in report.features] == [
        "prompt length",
        "answer length",
        "prompt surprisal",
        "answer surprisal",
    ]
    assert report.embedding_mmd2 is None


def test_the_features_share_what_a_look_may_spend():
    rng = np.random.default_rng(19)
    report = DriftBaseline(exchanges(rng, 40)).look(exchanges(rng, 10), 3, alpha=0.06)
    assert [feature.alpha for feature in report.features] == pytest.approx([0.001] * 5)


def test_a_baseline_of_a_few_exchanges_is_refused():
    with pytest.raises(ValueError, match="at least 20 exchanges; got 19"):
        DriftBaseline(exchanges(np.random.default_rng(20), 19))


@pytest.mark.parametrize(("num", "look"), [(0, 1), (5, 0)])
def test_a_look_at_nothing_or_without_a_number_is_refused(num, look):
    rng = np.random.default_rng(21)
    with pytest.raises(ValueError, match=f"got look {look}, {num} exchanges"):
        DriftBaseline(exchanges(rng, 20)).look(exchanges(rng, num), look)


def test_an_exchange_survives_its_json():
    seen = Exchange(prompt_tokens=(1, 2), completion_tokens=("a",), mean_logprob=-0.5, embedding=(0.1, 0.2))
    assert Exchange.model_validate_json(seen.model_dump_json()) == seen


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_a_log_probability_that_is_no_number_is_refused(logprob):
    with pytest.raises(ValidationError, match="finite"):
        Exchange(prompt_tokens=(1,), completion_tokens=(2,), mean_logprob=logprob)


def test_surprisal_is_what_krichevsky_and_trofimov_say():
    frequencies = TokenFrequencies([["a", "a"], ["b"]])
    # Three tokens, half a count for a, b and anything else: 2.5, 1.5 and 0.5 of 4.5.
    assert frequencies.surprisal(["a"]) == pytest.approx(-np.log(2.5 / 4.5))
    assert frequencies.surprisal(["b", "z"]) == pytest.approx(-np.log(1.5 * 0.5 / 4.5**2) / 2)
    assert np.isnan(frequencies.surprisal([]))


@pytest.mark.parametrize(
    ("p", "q", "bits"),
    [({"a": 3}, {"a": 9}, 0.0), ({"a": 1}, {"b": 5}, 1.0), ({"a": 1, "b": 1}, {"a": 1}, 0.311278)],
)
def test_jensen_shannon_divergence_is_in_bits_and_symmetric(p, q, bits):
    assert jensen_shannon_divergence(p, q) == pytest.approx(bits, abs=1e-6)
    assert jensen_shannon_divergence(q, p) == pytest.approx(bits, abs=1e-6)


def test_psi_is_nothing_for_the_same_values_and_large_for_others():
    values = np.arange(100, dtype=np.float64)
    assert population_stability_index(values, values) == pytest.approx(0)
    assert population_stability_index(values, values + 5) < 0.25 < population_stability_index(values, values + 50)


def test_psi_of_values_that_never_vary_is_finite():
    same = np.full(30, 4.0)
    assert population_stability_index(same, same) == pytest.approx(0)
    assert 1 < population_stability_index(same, same + 1) < 20


def test_ks_agrees_with_the_textbook_on_two_samples_apart():
    # All of 4 below all of 4: 2 of the C(8, 4) = 70 orders are as far apart.
    low = np.arange(4, dtype=np.float64)
    assert ks_p_value(low, low + 10) == pytest.approx(2 / 70)


def test_ks_of_many_values_warns_of_nothing():
    values = np.random.default_rng(22).standard_normal(1200)
    assert ks_p_value(values, values[:600]) > 0.9
    assert ks_p_value(values, values[:600] + 1) < 1e-9


@pytest.mark.parametrize("side", [-1, 1])
def test_ks_with_a_tolerance_sees_only_what_moved_further(side):
    values = np.random.default_rng(25).standard_normal(200) * 0.001
    assert ks_p_value(values, values + side * 0.01) < 1e-9
    assert ks_p_value(values, values + side * 0.01, tolerance=0.02) == 1
    assert ks_p_value(values, values + side * 0.05, tolerance=0.02) < 1e-9


def test_sure_answers_of_another_numerical_library_are_no_drift():
    rng = np.random.default_rng(26)
    baseline = DriftBaseline(exchanges(rng, 240))
    window = [seen.model_copy(update={"mean_logprob": seen.mean_logprob - 0.007}) for seen in exchanges(rng, 100)]
    assert not baseline.look(window, 1, alpha=0.5).is_drift


def test_mmd_is_zero_on_average_without_drift_and_two_for_far_points():
    rng = np.random.default_rng(23)
    estimates = [squared_mmd(rng.standard_normal((30, 2)), rng.standard_normal((20, 2)), 1.5) for _ in range(200)]
    assert abs(np.mean(estimates)) < 0.005
    assert squared_mmd(np.zeros((5, 2)), np.full((5, 2), 1e3), 1.0) == pytest.approx(2)


def test_the_bandwidth_of_equal_points_is_usable():
    assert median_distance(np.ones((4, 3))) == 1.0
    assert median_distance(np.array([[0.0], [2.0], [5.0]])) == 3.0
