"""Two servers measured alternately with the same prompts: throughput of 16 streams, and TTFT of one stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from loadtest.bench.agreement import measured_by_us
from loadtest.bench.alternate import measure_pairs, with_next_seed
from loadtest.bench.cost import successful_run
from loadtest.bench.options import BenchOptions

NUM_STREAMS = 16
NUM_WORDS = 48
NUM_TOKENS = 32
_WAVES = 4
"""Requests of one measurement of throughput, in full batches."""
_NUM_ALONE = 40
_NUM_ALONE_TOKENS = 4
"""Of one measurement of TTFT: requests one after the other, and tokens of each."""
_WARM_UP_SEED, _THROUGHPUT_SEED, _TTFT_SEED, _TOKENS_SEED = 0, 1000, 2000, 3000

Measure = Callable[[str, str, int], float]
"""URL, model and seed of the prompts, to a figure."""


@dataclass(frozen=True)
class TokenCounts:
    """What a server made of a request."""

    prompt: int | None
    output: int

    def __str__(self) -> str:
        return f"{self.prompt} prompt tokens and {self.output} output tokens"


@dataclass(frozen=True)
class Rounds:
    """The baseline's figure and the candidate's, round by round."""

    tokens_per_s: list[tuple[float, float]]
    ttft_ms: list[tuple[float, float]]


def measure_servers(
    baseline: str, candidate: str, model: str, throughput: Measure, ttft: Measure, options: BenchOptions
) -> Rounds:
    """Both figures of two servers. In a round both get the same requests.

    Args:
        baseline: Its URL, with /v1; the candidate's likewise.

    Raises:
        TargetError: A request failed.
    """

    def interleaved(measure: Measure, first_seed: int) -> list[tuple[float, float]]:
        first, second = (with_next_seed(partial(measure, url, model), first_seed) for url in (baseline, candidate))
        return measure_pairs(first, second, options.rounds, options.rest_s)

    for url in (baseline, candidate):  # first loads and first kernels are not what is measured
        throughput(url, model, _WARM_UP_SEED)
    return Rounds(interleaved(throughput, _THROUGHPUT_SEED), interleaved(ttft, _TTFT_SEED))


def tokens_per_s(url: str, model: str, seed: int, waves: int = _WAVES) -> float:
    """Output tokens per second of NUM_STREAMS users who ask again as soon as they are answered.

    Raises:
        TargetError: A request failed.
    """
    config = _config(url, model, seed, NUM_STREAMS, waves * NUM_STREAMS, NUM_TOKENS)
    return NUM_TOKENS * measured_by_us(config)["requests/s"]


def ttft_p50_ms(url: str, model: str, seed: int) -> float:
    """Time to first token of one user who asks for short answers, one after the other.

    Raises:
        TargetError: A request failed.
    """
    return measured_by_us(_config(url, model, seed, 1, _NUM_ALONE, _NUM_ALONE_TOKENS))["TTFT p50"]


def tokens_of_a_request(url: str, model: str) -> TokenCounts:
    """Of one that is the same for every server.

    Raises:
        TargetError: It failed.
    """
    (record,) = successful_run(_config(url, model, _TOKENS_SEED, 1, 1, NUM_TOKENS)).records
    return TokenCounts(record.num_prompt_tokens, record.num_completion_tokens)


def _config(url: str, model: str, seed: int, concurrency: int, num_requests: int, num_tokens: int) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=(model,)),
        arrival=ClosedArrival(kind="closed", concurrency=concurrency),
        num_requests=num_requests,
        duration_s=300,
        prompts=SyntheticPrompts(num_words=FixedLength(value=NUM_WORDS)),
        max_tokens=FixedLength(value=num_tokens),
        seed=seed,
    )
