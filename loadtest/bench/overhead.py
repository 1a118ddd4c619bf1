"""`lorikeet bench overhead`: what our server costs over vLLM's own, on the same engine settings.

Both run at the same time, with the same base and adapter, and are measured by turns with the same prompts: throughput
of 16 streams, and time to first token of one stream, for the base and for the adapter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from loadtest.bench.agreement import measured_by_us
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, added, paired
from loadtest.bench.servers import (
    adapter_folders,
    base_folder,
    kept_logs,
    our_server,
    same_threads,
    serve_config,
    vllm_environment,
    vllm_server,
)
from loadtest.copies import copy_adapter

NUM_STREAMS = 16
NUM_WORDS = 48
NUM_TOKENS = 32
LEAST_RATIO = 0.98
MOST_ADDED_TTFT_MS = 3.0
_WAVES = 4
"""Requests of one measurement of throughput, in full batches."""
_NUM_ALONE = 40
_NUM_ALONE_TOKENS = 4
"""Of one measurement of TTFT: requests one after the other, and tokens of each."""
_WARM_UP_SEED, _THROUGHPUT_SEED, _TTFT_SEED = 0, 1000, 2000

Measure = Callable[[str, str, int], float]
"""URL, model and seed of the prompts, to a figure."""


@dataclass(frozen=True)
class Pair:
    """Two servers' URLs, with /v1, and what to ask both for: the name of a row, and the model."""

    ours: str
    vllm: str
    models: Mapping[str, str]


def bench_overhead(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start both servers and compare them.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    with _both_servers(options) as pair:
        return compare(pair, options, tokens_per_s, ttft_p50_ms)


def compare(pair: Pair, options: BenchOptions, throughput: Measure, ttft: Measure) -> tuple[BenchResult, ...]:
    """Throughput, TTFT and added TTFT for each model.

    Args:
        throughput: In tokens per second.
        ttft: In milliseconds.

    Raises:
        TargetError: A request failed.
    """
    results: list[BenchResult] = []
    for name, model in pair.models.items():
        for url in (pair.vllm, pair.ours):  # first loads and first kernels are not what is measured
            throughput(url, model, _WARM_UP_SEED)
        streams = compare_pairs(_by_turns(pair, model, throughput, _THROUGHPUT_SEED, options))
        alone = _by_turns(pair, model, ttft, _TTFT_SEED, options)
        options.say(f"{name}: {streams.ratio:.3f} of vLLM's tok/s; added TTFT p50 {_shown(alone)} ms")
        row = f"{name}: {NUM_STREAMS} streams (baseline: vLLM's own server)"
        results += [
            paired(row, "tok/s", streams, least=LEAST_RATIO),
            paired(f"{name}: TTFT p50, one stream (baseline: vLLM's own server)", "ms", compare_pairs(alone)),
            added(f"{name}: TTFT p50 added", "ms", alone, below=MOST_ADDED_TTFT_MS),
        ]
    return tuple(results)


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


@contextmanager
def _both_servers(options: BenchOptions) -> Iterator[Pair]:
    config = serve_config(options)
    environment = same_threads(options)
    theirs_only = vllm_environment(environment, is_stock=options.is_stock)
    with kept_logs() as folder:
        home, names = copy_adapter(options.home, options.adapter, 1, folder / "home")
        adapters = adapter_folders(home, names)
        base = base_folder(options, config)
        with (
            our_server(config, home, folder, environment) as ours,
            vllm_server(config, base, adapters, folder, theirs_only, is_stock=options.is_stock) as theirs,
        ):
            models = {"base": config.served_model_name, "one adapter": next(iter(adapters))}
            yield Pair(f"{ours.url}/v1", f"{theirs.url}/v1", models)


def _by_turns(
    pair: Pair, model: str, measure: Measure, first_seed: int, options: BenchOptions
) -> list[tuple[float, float]]:
    """vLLM's figure and ours, round by round. In a round both are asked the same."""
    theirs, ours = (with_next_seed(partial(measure, url, model), first_seed) for url in (pair.vllm, pair.ours))
    return measure_pairs(theirs, ours, options.rounds, options.rest_s)


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


def _shown(pairs: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{ours - theirs:.2f}" for theirs, ours in pairs)
