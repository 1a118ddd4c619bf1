"""`lorikeet bench coldload`: what a cold load of one adapter does to the others.

Eight streams run while thirty adapters are loaded one after the other: the 99th percentile of the gaps between their
tokens, beside that of the same streams left alone, for adapters of rank 16 and 128, on our server and on stock vLLM.
And how much later the first token of a cold adapter comes than that of a warm one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import httpx

from config.home import Home
from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from config.serve import ServeConfig
from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import ComparedServer, successful_run
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import CpuMeter
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
from loadtest.bench.streams import Stretch, streams_of, watch_streams
from loadtest.errors import TargetError

NUM_STREAMS = 8
NUM_LOADS = 30
MOST_ITL_RATIO = {16: 1.15, 128: 1.3}
"""By rank: the streams' ITL p99 with loads, over that without."""
LONGEST_ADDED_TTFT_MS = 100.0
LEAST_FIRST_TOKENS = 20
_SETTINGS = {"max_loras": 8, "max_cpu_loras": 16}
_STREAM_TOKENS = 1792
_PROMPT_ROOM = 256
"""Tokens of the context that a stream's prompt may take."""
_TIMEOUT_S = 300.0

Loads = Callable[[httpx.AsyncClient], Awaitable[None]]
"""Loads adapters that are cold, one after the other."""


@dataclass(frozen=True)
class Subject:
    """A server whose streams are watched."""

    name: str
    side: ComparedServer
    model: str
    num_tokens: int
    load_adapters: Loads


WatchStreams = Callable[[Subject, bool, int], Stretch]
"""(subject, whether adapters are loaded during the run, seed of the prompts) -> observations of the streams."""


@dataclass(frozen=True)
class FirstToken:
    ttft_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class _Case:
    """One rank: its server's configuration, and the state folder with the copies of the adapter."""

    options: BenchOptions
    config: ServeConfig
    rank: int
    home: Home
    names: tuple[str, ...]
    folder: Path
    environment: dict[str, str]


def bench_coldload(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Per rank our server, then stock vLLM, one at a time; each is compared with itself.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a load or a request failed. The logs are kept; the message says
            where.
    """
    configs = {rank: serve_config(options, max_lora_rank=rank, **_SETTINGS) for rank in MOST_ITL_RATIO}
    environment = same_threads(options)
    results: list[BenchResult] = []
    with kept_logs() as folder:
        for rank, config in configs.items():
            place = folder / f"rank-{rank}"
            home, names = copy_adapter(options.home, options.adapter, NUM_LOADS + 1, place / "home", lora_r=rank)
            case = _Case(options, config, rank, home, names, place, environment)
            results += [*_on_ours(case), *_on_stock(case)]
    return tuple(results)


def itl_results(
    subject: Subject, watch: WatchStreams, rounds: int, pause_s: float, most: float | None
) -> tuple[BenchResult, ...]:
    """ITL p99 and CPU time per token, with and without loads, and the duration of a load.

    Args:
        most: Of the ratio of ITL p99; None where nothing is wanted.

    Raises:
        TargetError: A load or a stream failed.
    """
    watch(subject, True, 0)
    alone, loading = (with_next_seed(partial(watch, subject, is_loading), 1) for is_loading in (False, True))
    pairs = measure_pairs(alone, loading, rounds, pause_s)
    itl = compare_pairs([(1000 * without.itl_p99_s, 1000 * with_.itl_p99_s) for without, with_ in pairs])
    cpu = compare_pairs([(without.cpu_ms_per_token, with_.cpu_ms_per_token) for without, with_ in pairs])
    load_ms = median(1000 * with_.duration_s / NUM_LOADS for _, with_ in pairs)
    name = f"{subject.name}: ITL p99 of {NUM_STREAMS} streams while adapters load (baseline: none load)"
    return (
        paired(name, "ms", itl, most=most),
        paired(f"{subject.name}: CPU per token of the streams, loads included", "ms", cpu),
        BenchResult(name=f"{subject.name}: one load beside {NUM_STREAMS} streams", value=load_ms, unit="ms"),
    )


class Watcher:
    """Watches a subject's streams; without loads for as long as the last time with them took."""

    def __init__(self) -> None:
        self._duration_s = 0.0

    def __call__(self, subject: Subject, is_loading: bool, seed: int) -> Stretch:
        stretch = asyncio.run(self._watch(subject, is_loading, seed))
        if is_loading:
            self._duration_s = stretch.duration_s
        return stretch

    async def _watch(self, subject: Subject, is_loading: bool, seed: int) -> Stretch:
        streams = streams_of(subject.side, subject.model, NUM_STREAMS, subject.num_tokens, seed)
        # Opened before the streams, on both sides: its certificates take a core for 30 ms, as long as half a step.
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:

            async def meanwhile() -> None:
                if is_loading:
                    await subject.load_adapters(client)
                else:
                    await asyncio.sleep(self._duration_s)

            return await watch_streams(streams, subject.side.pid, meanwhile)


async def load_on_ours(root: str, references: Sequence[str], client: httpx.AsyncClient) -> None:
    """Unload and load each; the checks of a version's first load are done once, later loads skip those of its answers.

    Raises:
        TargetError: The server refused.
    """
    for reference in references:
        await _post(client, f"{root}/admin/adapters/{reference}/unload")
        await _post(client, f"{root}/admin/adapters/{reference}/load")


async def load_on_stock(root: str, folders: Sequence[Path], numbers: Iterator[int], client: httpx.AsyncClient) -> None:
    """Load each under a new name: vLLM's unloading only forgets the name, and what has a slot would not be cold.

    Raises:
        TargetError: The server refused.
    """
    for folder in folders:
        name = f"cold-{next(numbers)}"
        await _post(client, f"{root}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        await _post(client, f"{root}/v1/unload_lora_adapter", {"lora_name": name})


def first_token_results(measure: Callable[[bool, int], FirstToken], rounds: int) -> tuple[BenchResult, ...]:
    """Time to first token of a cold and of a warm adapter.

    Args:
        measure: Whether the adapter is to be cold, and the seed of the prompt, to a request's figures.
    """
    warm, cold = (with_next_seed(partial(measure, is_cold), 1) for is_cold in (False, True))
    pairs = measure_pairs(warm, cold, max(rounds, LEAST_FIRST_TOKENS), 0.0)
    ttfts = [(one.ttft_ms, other.ttft_ms) for one, other in pairs]
    cpu = compare_pairs([(one.cpu_ms, other.cpu_ms) for one, other in pairs])
    return (
        paired("first token of a cold adapter, one stream (baseline: warm)", "ms", compare_pairs(ttfts)),
        added("first token of a cold adapter, added", "ms", ttfts, below=LONGEST_ADDED_TTFT_MS),
        paired("first token of a cold adapter: CPU per request", "ms", cpu),
    )


def first_token(side: ComparedServer, reference: str, pause_s: float, is_cold: bool, seed: int) -> FirstToken:
    """One request of one token, after the adapter was unloaded, or loaded where it was not yet.

    Raises:
        TargetError: The request failed, or met the adapter in the other state.
    """
    action = "unload" if is_cold else "load"
    root = side.url.removesuffix("/v1")
    _check(httpx.post(f"{root}/admin/adapters/{reference}/{action}", timeout=_TIMEOUT_S, trust_env=False))
    time.sleep(pause_s)  # the engine spins for a second after that
    config = LoadtestConfig(
        url=side.url,
        mix=MixConfig(models=(reference,)),
        arrival=ClosedArrival(kind="closed", concurrency=1),
        num_requests=1,
        prompts=SyntheticPrompts(num_words=FixedLength(value=48)),
        max_tokens=FixedLength(value=1),
        seed=seed,
    )
    meter = CpuMeter(side.pid)
    (record,) = successful_run(config, watch=lambda _: meter).records
    if record.is_cold is not is_cold or record.ttft_s is None:
        raise TargetError(
            f"{reference!r} should be {'cold' if is_cold else 'warm'}, but x-lorikeet-cold says otherwise."
        )
    return FirstToken(1000 * record.ttft_s, 1000 * meter.cpu_s)


def _on_ours(case: _Case) -> Iterator[BenchResult]:
    options, rank = case.options, case.rank
    with our_server(case.config, case.home, case.folder, case.environment) as server:
        side = ComparedServer(f"{server.url}/v1", server.pid)
        streamed, *cold = case.names
        _check(httpx.post(f"{server.url}/admin/adapters/{streamed}/pin", timeout=_TIMEOUT_S, trust_env=False))
        loads = partial(load_on_ours, server.url, cold)
        asyncio.run(_load_once(loads))  # known and checked from here on
        subject = Subject(f"rank {rank}", side, streamed, _stream_tokens(case.config), loads)
        yield from _told(options, itl_results(subject, Watcher(), options.rounds, options.rest_s, MOST_ITL_RATIO[rank]))
        if rank == min(MOST_ITL_RATIO):
            measure = partial(first_token, side, cold[0], options.rest_s)
            yield from _told(options, first_token_results(measure, options.rounds))


def _on_stock(case: _Case) -> Iterator[BenchResult]:
    """In a third of the rounds: a load takes it seconds."""
    # Its server lets anybody who reaches it load any folder: it listens on loopback only.
    environment = vllm_environment(case.environment, is_stock=True) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    options, config, base = case.options, case.config, base_folder(case.options, case.config)
    (streamed, place), *cold = adapter_folders(case.home, case.names).items()
    with vllm_server(config, base, {streamed: place}, case.folder, environment, is_stock=True) as server:
        loads = partial(load_on_stock, server.url, [path for _, path in cold], count())
        side = ComparedServer(f"{server.url}/v1", server.pid)
        subject = Subject(f"stock vLLM, rank {case.rank}", side, streamed, _stream_tokens(config), loads)
        yield from _told(options, itl_results(subject, Watcher(), -(-options.rounds // 3), options.rest_s, None))


async def _load_once(loads: Loads) -> None:
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        await loads(client)


def _stream_tokens(config: ServeConfig) -> int:
    return min(_STREAM_TOKENS, config.limits.max_tokens, config.max_model_len - _PROMPT_ROOM)


def _told(options: BenchOptions, results: tuple[BenchResult, ...]) -> tuple[BenchResult, ...]:
    first = results[0]
    options.say(f"{first.name}: {first.value:.1f} {first.unit}, ratio {first.ratio:.3f}")
    return results


async def _post(client: httpx.AsyncClient, url: str, content: dict[str, str] | None = None) -> None:
    _check(await client.post(url, json=content))


def _check(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise TargetError(f"{answer.request.url}: {answer.status_code}: {answer.text[:300]}")
