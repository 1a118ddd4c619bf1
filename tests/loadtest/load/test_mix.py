"""Which model each request asks for."""

from collections import Counter
from itertools import islice

import pytest

from config.loadtest import (
    HotSetPopularity,
    MixConfig,
    OneShotPopularity,
    Popularity,
    UniformPopularity,
    WeightedPopularity,
    ZipfPopularity,
)
from loadtest.load.mix import models_of

MODELS = tuple("abcdefgh")
KINDS: list[Popularity] = [
    UniformPopularity(),
    ZipfPopularity(kind="zipf", s=1.2),
    WeightedPopularity(kind="weights", weights=(1, 2, 3, 4, 5, 6, 7, 8)),
    HotSetPopularity(kind="hot_set", size=2),
]


def draw(popularity: Popularity, count: int = 4000, *, base_share: float = 0.0, seed: int = 1) -> list[str]:
    mix = MixConfig(models=MODELS, popularity=popularity, base="base", base_share=base_share)
    return list(islice(models_of(mix, seed), count))


def shares(drawn: list[str]) -> dict[str, float]:
    return {model: count / len(drawn) for model, count in Counter(drawn).items()}


@pytest.mark.parametrize("popularity", KINDS, ids=lambda popularity: popularity.kind)
def test_the_same_seed_gives_the_same_models(popularity: Popularity) -> None:
    assert draw(popularity, seed=3) == draw(popularity, seed=3)
    assert draw(popularity, seed=3) != draw(popularity, seed=4)


def test_zipf_falls_with_the_place() -> None:
    found = shares(draw(ZipfPopularity(kind="zipf", s=1.0), 20_000))
    assert found["a"] / found["d"] == pytest.approx(4, rel=0.15)
    assert found["a"] / found["h"] == pytest.approx(8, rel=0.2)


def test_uniform_gives_each_model_the_same() -> None:
    assert shares(draw(UniformPopularity())) == {model: pytest.approx(1 / 8, abs=0.03) for model in MODELS}


def test_weights_are_kept() -> None:
    found = shares(draw(WeightedPopularity(kind="weights", weights=(3, 1, 0, 0, 0, 0, 0, 0))))
    assert found == {"a": pytest.approx(0.75, abs=0.03), "b": pytest.approx(0.25, abs=0.03)}


@pytest.mark.parametrize("popularity", KINDS, ids=lambda popularity: popularity.kind)
def test_the_base_gets_its_share(popularity: Popularity) -> None:
    assert shares(draw(popularity, base_share=0.3))["base"] == pytest.approx(0.3, abs=0.03)


def test_a_hot_set_takes_its_share_and_moves_on() -> None:
    drawn = draw(HotSetPopularity(kind="hot_set", size=2, share=1.0, rotate_after=10), 50)
    turns = [set(drawn[start : start + 10]) for start in range(0, 50, 10)]
    assert turns == [{"a", "b"}, {"c", "d"}, {"e", "f"}, {"g", "h"}, {"a", "b"}]


def test_models_outside_the_hot_set_get_the_rest() -> None:
    found = shares(draw(HotSetPopularity(kind="hot_set", size=1, share=0.6, rotate_after=10_000)))
    assert found["a"] == pytest.approx(0.6 + 0.4 / 8, abs=0.03)
    assert len(found) == 8


def test_one_shot_asks_each_adapter_once_and_ends() -> None:
    assert draw(OneShotPopularity(kind="one_shot")) == list(MODELS)


def test_one_shot_with_a_base_share_still_asks_each_adapter_once() -> None:
    drawn = draw(OneShotPopularity(kind="one_shot"), base_share=0.5)
    assert [model for model in drawn if model != "base"] == list(MODELS)
    assert "base" in drawn


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_share": 0.5}, "needs `base`"),
        ({"popularity": {"kind": "weights", "weights": (1, 2)}}, "2 weights for 8 models"),
        ({"popularity": {"kind": "weights", "weights": (0,) * 8}}, "nor all zero"),
        ({"popularity": {"kind": "hot_set", "size": 9}}, "hot set of 9 needs at least that many models"),
    ],
)
def test_a_mix_that_cannot_be_drawn_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixConfig.model_validate({"models": MODELS} | fields)
