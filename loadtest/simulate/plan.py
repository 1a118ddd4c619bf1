"""How many servers a load needs: fleets of several sizes by each policy, and the smallest one within an SLO."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from loadtest.errors import LoadtestError
from loadtest.load.records import LoadtestRecord, RunResult
from loadtest.report.slo import Slo
from loadtest.simulate.demand import make_requests
from loadtest.simulate.fleet import FleetFigures, Policy, simulate
from loadtest.simulate.replica import ServerModel, SimulatedRequest


class Demand(LoadtestRecord):
    """Requests to send to each fleet; made anew each time, for a simulation changes them."""

    num_requests: int
    rate: float = Field(description="Requests per second.")
    num_adapters: int
    zipf: float
    churn_every: int | None
    seed: int
    lengths: tuple[tuple[int, int], ...] = Field(exclude=True, repr=False, description="Tokens of prompt and answer.")

    def requests(self) -> list[SimulatedRequest]:
        return make_requests(
            self.num_requests, self.rate, self.num_adapters, self.zipf, self.lengths, self.seed, self.churn_every
        )

    def __str__(self) -> str:
        churn = f", ranks move every {self.churn_every} requests" if self.churn_every else ""
        return (
            f"{self.num_requests:,} requests at {self.rate:g}/s for {self.num_adapters:,} adapters, Zipf "
            f"{self.zipf:g}{churn}"
        )


class FleetRow(FleetFigures):
    """The figures of a fleet, and whether they are within the SLO."""

    is_met: bool | None
    """None: no SLO was given."""


class Repeated(LoadtestRecord):
    """A figure of a real run beside the simulation's of the same requests."""

    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """As a share of the real one; 0 where both are 0."""
        return (self.simulated - self.real) / self.real if self.real else float(self.simulated != 0)


class SimulationReport(LoadtestRecord):
    """`simulation.json`."""

    schema_version: Literal[1] = 1
    started_at: str
    calibrated_on: str
    machine: str
    model: dict[str, float]
    demand: Demand
    repeated: tuple[Repeated, ...]
    repeated_on: str
    rows: tuple[FleetRow, ...]
    slo: Slo | None
    recommended: dict[str, int | None]
    """The smallest fleet within the SLO by policy; None: not even the largest that was tried."""


def simulate_fleets(
    model: ServerModel,
    demand: Demand,
    sizes: Sequence[int],
    policies: Sequence[Policy],
    on_requests: Callable[[int], None] = lambda count: None,
) -> list[FleetFigures]:
    """Every size by every policy."""
    return [
        simulate(model, demand.requests(), size, policy, demand.seed, on_requests)
        for size in sizes
        for policy in policies
    ]


def row_of(figures: FleetFigures, slo: Slo | None) -> FleetRow:
    return FleetRow(**figures.model_dump(), is_met=None if slo is None else is_within(figures, slo))


def is_within(figures: FleetFigures, slo: Slo) -> bool:
    """Whether a fleet meets the limits on TTFT, end to end (their p99) and errors: refused requests."""
    limits = (
        (slo.ttft_s, figures.ttft_p99_s),
        (slo.e2e_s, figures.e2e_p99_s),
        (slo.errors, figures.refused_share),
    )
    return all(limit is None or value <= limit for limit, value in limits)


def smallest_fleet(
    model: ServerModel,
    demand: Demand,
    policy: Policy,
    slo: Slo,
    most: int,
    on_fleet: Callable[[FleetFigures], None] = lambda figures: None,
) -> int | None:
    """The fewest servers within the SLO: doubling, then bisection; None if `most` are too few.

    Args:
        on_fleet: Called with each fleet that was simulated.
    """

    def holds(num_replicas: int) -> bool:
        figures = simulate(model, demand.requests(), num_replicas, policy, demand.seed)
        on_fleet(figures)
        return is_within(figures, slo)

    low, high = 0, 1
    while not holds(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def compare_with_run(real: RunResult, simulated: FleetFigures) -> tuple[Repeated, ...]:
    """What a simulation of a real run's requests is held to.

    Raises:
        LoadtestError: No request of the run was answered.
    """
    good = [record for record in real.records if record.is_ok and record.ttft_s is not None]
    if not good:
        raise LoadtestError(f"Run {real.name!r} has no answered request.")
    length_s = max(record.ended_s for record in good) - min(record.intended_s for record in good)
    ttft_p50_s, ttft_p99_s = np.percentile([record.ttft_s for record in good], (50, 99))
    pairs = {
        "tokens/s": (sum(record.num_completion_tokens for record in good) / length_s, simulated.tokens_per_s),
        "TTFT p50, s": (ttft_p50_s, simulated.ttft_p50_s),
        "TTFT p99, s": (ttft_p99_s, simulated.ttft_p99_s),
        "cold requests, share": (sum(bool(r.is_cold) for r in good) / len(good), simulated.cold_share),
    }
    return tuple(Repeated(name=name, real=float(own), simulated=other) for name, (own, other) in pairs.items())
