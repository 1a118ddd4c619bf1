"""What Ray's proxy and the ingress cost: one replica beside `lorikeet serve`, measured alternately."""

from collections.abc import Sequence
from functools import partial
from statistics import median

from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.cluster_server import NUM_TOKENS, load_on
from loadtest.bench.cost import require_success
from loadtest.bench.processes import CpuMeter
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.server import RunningServer
from loadtest.load.records import LoadtestRecord
from loadtest.report.stats import percentile, values_of

LEAST_THROUGHPUT = 0.9
MOST_ADDED_TTFT_MS = 15.0
_STREAMS, _REQUESTS = 16, 32
_ALONE_REQUESTS, _ALONE_TOKENS = 24, 8
_FIRST_SEED, _FIRST_ALONE_SEED = 1, 1000


class IngressCost(LoadtestRecord):
    """One server's figures in one round; of one stream at a time: `ttft_p50_ms` and `tpot_p50_ms`."""

    tokens_per_s: float
    cpu_ms_per_token: float
    ttft_p50_ms: float
    tpot_p50_ms: float


class IngressCosts(LoadtestRecord):
    """Each round's single server and replica."""

    rounds: tuple[tuple[IngressCost, IngressCost], ...]

    def __str__(self) -> str:
        return f"{len(self.rounds)} rounds"


def ingress_costs(single: RunningServer, replica: RunningServer, name: str, rounds: int, rest_s: float) -> IngressCosts:
    """Both servers with the same prompts in a round.

    Args:
        rest_s: Pause before each measurement.

    Raises:
        TargetError: A request failed.
    """
    first, second = (partial(_cost, server, name) for server in (single, replica))
    for measure in (first, second):
        measure(0)  # the adapter's load is not measured
    pairs = measure_pairs(with_next_seed(first, _FIRST_SEED), with_next_seed(second, _FIRST_SEED), rounds, rest_s)
    return IngressCosts(rounds=tuple(pairs))


def _cost(server: RunningServer, name: str, seed: int) -> IngressCost:
    with CpuMeter(server.pid) as meter:
        many = load_on(server, (name,), num_requests=_REQUESTS, streams=_STREAMS, seed=seed)
    seed += _FIRST_ALONE_SEED
    alone = load_on(server, (name,), num_requests=_ALONE_REQUESTS, num_tokens=_ALONE_TOKENS, streams=1, seed=seed)
    for run in (many, alone):
        require_success(run.records, server.url)
    ttft_s, tpot_s = (percentile(values_of(alone.records, metric), 50) for metric in ("ttft", "tpot"))
    num_tokens = NUM_TOKENS * len(many.records)
    return IngressCost(
        tokens_per_s=num_tokens / many.duration_s,
        cpu_ms_per_token=1000 * meter.cpu_s / num_tokens,
        ttft_p50_ms=1000 * ttft_s,
        tpot_p50_ms=1000 * tpot_s,
    )


def ingress_results(costs: IngressCosts) -> tuple[BenchResult, ...]:
    """Rows of the ingress."""

    def pairs(figure: str) -> list[tuple[float, float]]:
        return [(getattr(single, figure), getattr(replica, figure)) for single, replica in costs.rounds]

    title = f"one replica, {_STREAMS} streams: {{}} (baseline: `lorikeet serve`)"
    throughput, cpu = compare_pairs(pairs("tokens_per_s")), compare_pairs(pairs("cpu_ms_per_token"))
    return (
        paired(title.format("throughput"), "tok/s", throughput, least=LEAST_THROUGHPUT),
        paired(title.format("CPU per streamed token"), "ms", cpu),
        _added("TTFT p50", pairs("ttft_p50_ms"), MOST_ADDED_TTFT_MS),
        _added("time per token, p50", pairs("tpot_p50_ms"), None),
    )


def _added(name: str, pairs: Sequence[tuple[float, float]], most_ms: float | None) -> BenchResult:
    """Both sides as medians; the difference is the median of the rounds' differences."""
    added_ms = median(second - first for first, second in pairs)
    return BenchResult(
        name=f"one replica, one stream: {name}, {added_ms:+.1f} ms (baseline: `lorikeet serve`)",
        value=median(second for _, second in pairs),
        unit="ms",
        baseline=median(first for first, _ in pairs),
        target=None if most_ms is None else f"at most {most_ms:g} ms more",
        is_pass=None if most_ms is None else added_ms <= most_ms,
    )
