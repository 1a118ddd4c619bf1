"""`lorikeet bench lora`: what LoRA costs here, beside vLLM without LoRA and beside stock vLLM with it.

Our server runs throughout, and beside it vLLM's own, in three stages: LoRA off, LoRA on the same threads, and LoRA
on the threads that vLLM chooses itself. Tokens per second and CPU time per token are measured alternately.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loadtest.bench.alternate import compare_pairs, measure_pairs, with_next_seed
from loadtest.bench.copies import copy_adapter
from loadtest.bench.cost import ComparedServer, Load, Measure, measure_cost
from loadtest.bench.floor import adapter_bytes, base_bytes, floor_results, read_bytes_per_s
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.server import RunningServer
from loadtest.bench.servers import (
    THREAD_SETTINGS,
    adapter_folders,
    base_folder,
    kept_logs,
    our_server,
    physical_cores,
    same_threads,
    serve_config,
    vllm_environment,
    vllm_server,
)

NUM_STREAMS = 16
NUM_ADAPTERS = 8
NUM_PREFILLED = 4
"""Adapters that the long prompts are for."""
SETTINGS = {"max_loras": NUM_ADAPTERS, "max_cpu_loras": 2 * NUM_ADAPTERS}

STREAMS = Load(num_streams=NUM_STREAMS, num_requests=4 * NUM_STREAMS)
# Stock vLLM is several times slower, and its target is coarse.
FEWER = replace(STREAMS, num_requests=2 * NUM_STREAMS)
ALONE = Load(num_streams=1, num_requests=6, num_tokens=64)
# The words and the chat template make 512 tokens; random ones, so that no prefix cache answers. Four fill a step.
PREFILL = Load(num_streams=NUM_PREFILLED, num_requests=2 * NUM_STREAMS, num_words=480, num_tokens=1, counted="prompt")
_LONGEST_MEASUREMENT_S = 20.0
_SEEDS_PER_ROW = 1000
_SEEDS_PER_STAGE = 100 * _SEEDS_PER_ROW


@dataclass(frozen=True)
class Row:
    """One comparison: the models that both servers' users ask for, and what the ratio must be at least."""

    name: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    load: Load
    least: float | None = None


@dataclass(frozen=True)
class Stage:
    """One of vLLM's servers, and what it is compared by. Without adapters LoRA is off."""

    baseline: str
    adapters: dict[str, Path]
    environment: dict[str, str]
    rows: tuple[Row, ...]


def bench_lora(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start our server, and beside it one of vLLM's after the other.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    config = serve_config(options, **SETTINGS)
    base, environment = base_folder(options, config), same_threads(options)
    results: list[BenchResult] = []
    with kept_logs() as folder:
        home, names = copy_adapter(options.home, options.adapter, NUM_ADAPTERS, folder / "home")
        adapters = adapter_folders(home, names)
        stages = stages_of(config.served_model_name, adapters, environment)
        with our_server(config, home, folder, environment) as ours:
            for number, stage in enumerate(stages):
                options.say(f"{stage.baseline} starts ({number + 1} of {len(stages)})")
                with vllm_server(config, base, stage.adapters, folder, stage.environment, is_stock=True) as theirs:
                    seed = number * _SEEDS_PER_STAGE
                    results += compare(stage, _side(ours), _side(theirs), options, measure_cost, seed)
            results += _floor(base, next(iter(adapters.values())), options)
    return tuple(results)


def stages_of(base: str, adapters: dict[str, Path], environment: dict[str, str]) -> tuple[Stage, ...]:
    """LoRA off, stock LoRA on the same threads, and stock LoRA as a user gets it."""
    names = tuple(adapters)
    one, mixed = names[:1], (base, *names[:2])
    own_threads = {name: value for name, value in environment.items() if name not in THREAD_SETTINGS}
    against_off = (
        Row("base", (base,), (base,), STREAMS),
        Row("one adapter", one, (base,), STREAMS, least=0.92),
        Row("base and 2 adapters mixed", mixed, (base,), STREAMS, least=0.92),
        Row(f"{NUM_ADAPTERS} adapters", names, (base,), STREAMS, least=0.82),
        Row("base, 1 stream", (base,), (base,), ALONE),
        Row("one adapter, 1 stream", one, (base,), ALONE, least=0.92),
        Row("prefill of 512 tokens, 4 adapters", names[:NUM_PREFILLED], (base,), PREFILL, least=0.85),
    )
    against_stock = (
        Row("one adapter", one, one, FEWER, least=3.5),
        Row("base and 2 adapters mixed", mixed, mixed, FEWER, least=3.5),
        Row(f"{NUM_ADAPTERS} adapters", names, names, FEWER, least=3.5),
    )
    as_a_user_gets_it = (Row("one adapter", one, one, FEWER, least=6.0),)
    same = vllm_environment(environment, is_stock=True)
    own = vllm_environment(own_threads, is_stock=True)
    return (
        Stage("vLLM, LoRA off", {}, same, against_off),
        Stage("stock vLLM, same threads", adapters, same, against_stock),
        Stage("stock vLLM, its own threads", adapters, own, as_a_user_gets_it),
    )


def compare(
    stage: Stage, ours: ComparedServer, theirs: ComparedServer, options: BenchOptions, measure: Measure, first_seed: int
) -> Iterator[BenchResult]:
    """Tokens per second and CPU time per token of each row. In a round both servers get the same requests.

    Args:
        first_seed: Of the prompts; no two rows that meet the same server may share one.

    Raises:
        TargetError: A request failed.
    """
    for number, row in enumerate(stage.rows):
        seed = first_seed + number * _SEEDS_PER_ROW
        sides = ((theirs, row.theirs), (ours, row.ours))
        first = replace(row.load, num_requests=row.load.num_streams)
        # First loads and first kernels are not what is measured.
        theirs_first, _ = [measure(side, models, first, seed) for side, models in sides]
        load = within(_LONGEST_MEASUREMENT_S, row.load, theirs_first.tokens_per_s)
        baseline, candidate = (with_next_seed(partial(measure, side, models, load), seed + 1) for side, models in sides)
        pairs = measure_pairs(baseline, candidate, options.rounds, options.rest_s)
        speed = compare_pairs([(one.tokens_per_s, other.tokens_per_s) for one, other in pairs])
        cpu = compare_pairs([(one.cpu_ms_per_token, other.cpu_ms_per_token) for one, other in pairs])
        name = f"{row.name} (baseline: {stage.baseline})"
        options.say(f"{name}: {speed.ratio:.3f} of its tok/s, {cpu.ratio:.3f} of its CPU time")
        yield paired(name, "tok/s", speed, least=row.least)
        yield paired(f"{name}: CPU per token", "ms", cpu)


def within(seconds: float, load: Load, tokens_per_s: float) -> Load:
    """The load, or as many batches of it as fit into this time at this speed, but one at least."""
    per_batch = load.num_streams * (load.num_tokens if load.counted == "output" else load.num_words)
    num_batches = max(1, round(seconds * tokens_per_s / per_batch))
    return replace(load, num_requests=min(load.num_requests, num_batches * load.num_streams))


def _floor(base: Path, adapter: Path, options: BenchOptions) -> tuple[BenchResult, ...]:
    time.sleep(options.rest_s)
    num_threads = len(physical_cores())
    bytes_per_s = read_bytes_per_s(num_threads)
    return floor_results(base_bytes(base), adapter_bytes(adapter), bytes_per_s, num_threads, NUM_STREAMS)


def _side(server: RunningServer) -> ComparedServer:
    return ComparedServer(f"{server.url}/v1", server.pid)
