"""The model of each request, by adapter popularity and the base's share. Pure: the same seed gives the same models."""

import random
from collections.abc import Iterator
from itertools import accumulate, count

from config.loadtest import HotSetPopularity, MixConfig, OneShotPopularity, WeightedPopularity, ZipfPopularity


def models_of(mix: MixConfig, seed: int) -> Iterator[str]:
    """One model reference per request; endless except for one-shot popularity."""
    rng = random.Random(f"mix {seed}")
    adapters = _adapters(mix, rng)
    while True:
        if mix.base is not None and rng.random() < mix.base_share:
            yield mix.base
            continue
        adapter = next(adapters, None)
        if adapter is None:
            return
        yield adapter


def _adapters(mix: MixConfig, rng: random.Random) -> Iterator[str]:
    if isinstance(mix.popularity, OneShotPopularity):
        return iter(mix.models)
    if isinstance(mix.popularity, HotSetPopularity):
        return _hot_set(mix.models, mix.popularity, rng)
    return _weighted(mix.models, weights_of(mix), rng)


def weights_of(mix: MixConfig) -> tuple[float, ...]:
    """Relative weight of each model, in order; equal if popularity changes over time."""
    if isinstance(mix.popularity, ZipfPopularity):
        return tuple(1 / place**mix.popularity.s for place in range(1, len(mix.models) + 1))
    if isinstance(mix.popularity, WeightedPopularity):
        return mix.popularity.weights
    return (1.0,) * len(mix.models)


def _weighted(models: tuple[str, ...], weights: tuple[float, ...], rng: random.Random) -> Iterator[str]:
    cumulated = list(accumulate(weights))
    while True:
        yield rng.choices(models, cum_weights=cumulated)[0]


def _hot_set(models: tuple[str, ...], popularity: HotSetPopularity, rng: random.Random) -> Iterator[str]:
    """`size` adjacent models are hot; after `rotate_after` requests the next `size` are."""
    for number in count():
        first = number // popularity.rotate_after * popularity.size
        is_hot = rng.random() < popularity.share
        offset = rng.randrange(popularity.size) if is_hot else rng.randrange(len(models))
        yield models[(first + offset) % len(models)]
