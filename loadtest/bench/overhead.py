"""`lorikeet bench overhead`: what our server costs over vLLM's own, on the same engine settings.

Both run at the same time, with the same base and adapter, measured alternately with the same prompts: throughput
of 16 streams, and time to first token of one stream, for the base and for the adapter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.bench.alternate import compare_pairs
from loadtest.bench.copies import copy_adapter
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
from loadtest.bench.two_servers import (
    NUM_STREAMS,
    Measure,
    TokenCounts,
    measure_servers,
    tokens_of_a_request,
    tokens_per_s,
    ttft_p50_ms,
)
from loadtest.errors import TargetError

LEAST_RATIO = 0.98
MOST_ADDED_TTFT_MS = 3.0


@dataclass(frozen=True)
class ServerPair:
    """Two servers' URLs, with /v1, and what to ask both for: the name of a row, and the model."""

    ours: str
    vllm: str
    models: Mapping[str, str]


def bench_overhead(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start both servers and compare them.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, a request failed, or both servers did not make the same of one. The
            logs are kept; the message says where.
    """
    with _both_servers(options) as pair:
        return compare(pair, options, tokens_per_s, ttft_p50_ms, tokens_of_a_request)


def compare(
    pair: ServerPair,
    options: BenchOptions,
    throughput: Measure,
    ttft: Measure,
    tokens: Callable[[str, str], TokenCounts],
) -> tuple[BenchResult, ...]:
    """Throughput, TTFT and added TTFT for each model.

    Args:
        throughput: In tokens per second.
        ttft: In milliseconds.
        tokens: What a server, by URL, makes of a request to a model.

    Raises:
        TargetError: A request failed, or both servers did not make the same of one.
    """
    _require_equal_loads(pair, tokens)
    results: list[BenchResult] = []
    for name, model in pair.models.items():
        rounds = measure_servers(pair.vllm, pair.ours, model, throughput, ttft, options)
        streams, alone = compare_pairs(rounds.tokens_per_s), compare_pairs(rounds.ttft_ms)
        options.say(f"{name}: {streams.ratio:.3f} of vLLM's tok/s; added TTFT p50 {_shown(rounds.ttft_ms)} ms")
        row = f"{name}: {NUM_STREAMS} streams (baseline: vLLM's own server)"
        results += [
            paired(row, "tok/s", streams, least=LEAST_RATIO),
            paired(f"{name}: TTFT p50, one stream (baseline: vLLM's own server)", "ms", alone),
            added(f"{name}: TTFT p50 added", "ms", rounds.ttft_ms, below=MOST_ADDED_TTFT_MS),
        ]
    return tuple(results)


def _require_equal_loads(pair: ServerPair, tokens: Callable[[str, str], TokenCounts]) -> None:
    """Do nothing where both servers make as many tokens of a request: else a ratio would be of two different loads.

    Raises:
        TargetError: They do not, or a request failed.
    """
    for model in pair.models.values():
        ours, theirs = tokens(pair.ours, model), tokens(pair.vllm, model)
        if ours != theirs:
            raise TargetError(
                f"{model!r}: of the same request our server made {ours}, vLLM's own {theirs}. The two cannot be "
                "compared: look for what changes requests in one of them, as request defaults do."
            )


@contextmanager
def _both_servers(options: BenchOptions) -> Iterator[ServerPair]:
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
            yield ServerPair(f"{ours.url}/v1", f"{theirs.url}/v1", models)


def _shown(pairs: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{ours - theirs:.2f}" for theirs, ours in pairs)
