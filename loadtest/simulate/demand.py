"""Requests to simulate: Poisson arrivals, adapters by Zipf's law, lengths drawn from those of a real run."""

from collections.abc import Sequence

import numpy as np

from loadtest.simulate.replica import SimulatedRequest


def make_requests(
    num_requests: int,
    rate: float,
    num_adapters: int,
    zipf: float,
    lengths: Sequence[tuple[int, int]],
    seed: int,
    churn_every: int | None = None,
) -> list[SimulatedRequest]:
    """Requests in the order of their times; the same arguments give the same ones.

    Args:
        rate: Requests per second.
        zipf: The adapter of rank k gets requests in proportion to 1 / k**zipf.
        lengths: (tokens of the prompt, of the answer) to draw from.
        churn_every: Requests after which the ranks move on by one adapter: the hottest one cools down.

    Raises:
        ValueError: A number is not positive.
    """
    if min(num_requests, num_adapters, len(lengths)) < 1 or rate <= 0:
        raise ValueError("Requests, adapters, lengths and rate must be positive.")
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, num_requests))
    shares = np.arange(1, num_adapters + 1, dtype=float) ** -zipf
    ranks = np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(num_requests)).clip(max=num_adapters - 1)
    if churn_every:
        ranks = (ranks + np.arange(num_requests) // churn_every) % num_adapters
    drawn = rng.integers(0, len(lengths), num_requests)
    return [
        SimulatedRequest(float(time), int(rank), *lengths[index])
        for time, rank, index in zip(times, ranks, drawn, strict=True)
    ]
