"""Who makes room, and that it is a better choice than the least recently used."""

import random
from collections import OrderedDict
from collections.abc import Sequence

import pytest

from adapters.reference import Target
from serve.residency.eviction import Popularity

NUM_ADAPTERS, ROOM = 1000, 16


def zipf_stream(num_requests: int, shift_every: int, seed: int = 13) -> list[Target]:
    """Requests by popularity 1/k; after each `shift_every` requests other adapters are the popular ones."""
    draw = random.Random(seed)
    weights = [1 / place for place in range(1, NUM_ADAPTERS + 1)]
    order = [Target(f"a{number}", 1) for number in range(NUM_ADAPTERS)]
    stream: list[Target] = []
    while len(stream) < num_requests:
        stream += draw.choices(order, weights, k=shift_every)
        draw.shuffle(order)
    return stream[:num_requests]


def hit_rate(stream: Sequence[Target], popularity: Popularity | None) -> float:
    """Share of requests that find their adapter resident; without a popularity the least recently used one goes."""
    resident: OrderedDict[Target, int] = OrderedDict()
    hits = 0
    for target in stream:
        if popularity:
            popularity.asked(target)
        if target in resident:
            hits += 1
        elif len(resident) >= ROOM:
            del resident[popularity.least_wanted(resident.items()) if popularity else next(iter(resident))]
        resident[target] = 1
        resident.move_to_end(target)
    return hits / len(stream)


@pytest.mark.parametrize(
    ("shift_every", "gain"),
    [
        pytest.param(20_000, 0.14, marks=pytest.mark.slow),
        (5_000, 0.12),
        pytest.param(1_000, 0.05, marks=pytest.mark.slow),
    ],
)
def test_more_requests_find_their_adapter_than_by_last_use(shift_every: int, gain: float) -> None:
    stream = zipf_stream(20_000, shift_every)
    ours, by_last_use = hit_rate(stream, Popularity()), hit_rate(stream, None)
    print(f"popular ones change every {shift_every} requests: {ours:.3f}, by last use {by_last_use:.3f}")
    assert ours >= by_last_use + gain


def test_of_equally_wanted_ones_the_least_recently_used_goes() -> None:
    popularity = Popularity()
    first, second = Target("a", 1), Target("b", 1)
    popularity.asked(second)
    popularity.asked(first)
    assert popularity.least_wanted([(first, 1), (second, 1)]) == first


def test_what_costs_more_to_load_stays_longer() -> None:
    popularity = Popularity()
    large, small = Target("large", 1), Target("small", 1)
    for target in (large, small, small):
        popularity.asked(target)
    assert popularity.least_wanted([(large, 80 << 20), (small, 10 << 20)]) == small
    assert popularity.least_wanted([(large, 10 << 20), (small, 10 << 20)]) == large


def test_old_requests_are_forgotten_and_so_are_names_nobody_asks_for() -> None:
    popularity = Popularity(window=10)
    was, is_now = Target("was", 1), Target("now", 1)
    for target in [was] * 10 + [Target(f"other{n}", 1) for n in range(40)] + [is_now] * 2:
        popularity.asked(target)
    assert popularity.least_wanted([(is_now, 1), (was, 1)]) == was
    assert len(popularity._counts) <= 20


def test_demand_is_counted_by_version() -> None:
    popularity = Popularity()
    for target in (Target("a", 1), Target("a", 2), Target("a", 2)):
        popularity.asked(target)
    assert popularity.counts() == {"a@1": 2, "a@2": 4}
