"""`lorikeet bench overhead`: what our server costs over vLLM's own, on the same engine settings.

Both run at the same time, with the same base and adapter, and are measured by turns with the same prompts: throughput
of 16 streams, and time to first token of one stream, for the base and for the adapter.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

import yaml

from adapters.store import AdapterStore
from config.load import load_serve
from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, SyntheticPrompts
from config.schema import ServeConfig
from loadtest.bench.agreement import measured_by_us
from loadtest.bench.alternate import Alternated, alternate
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.copies import copy_adapter
from loadtest.errors import LoadtestError, TargetError
from loadtest.server import ServerError, free_port, last_lines, running_command, running_server

NUM_STREAMS = 16
NUM_WORDS = 48
NUM_TOKENS = 32
LEAST_RATIO = 0.98
MOST_ADDED_TTFT_MS = 3.0
THREAD_SETTINGS = ("VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")
_WAVES = 4
"""Requests of one measurement of throughput, in full batches."""
_NUM_ALONE = 40
_NUM_ALONE_TOKENS = 4
"""Of one measurement of TTFT: requests one after the other, and tokens of each."""
_WARM_UP_SEED, _THROUGHPUT_SEED, _TTFT_SEED = 0, 1000, 2000
# Two engines share the memory of a GPU (on a CPU the key has no effect), and nothing else goes on.
_SETTINGS_OF_BOTH = {"gpu_memory_utilization": 0.4, "keys_file": None, "remote_store": None, "canary_probes": False}
_FEW_CORES = 4
_TOPOLOGY = Path("/sys/devices/system/cpu")
_PLUGINS = "vllm.general_plugins"
# What `vllm serve` runs. The `vllm` command itself fails where the CPU build is installed: it asks for the version of a
# distribution that has another name there.
_VLLM_SERVER = "vllm.entrypoints.launchers.api_server.entry"

Measure = Callable[[str, str, int], float]
"""URL, model and seed of the prompts, to a figure."""


@dataclass(frozen=True)
class Pair:
    """Two servers' URLs, with /v1, and what to ask both for: the name of a row, and the model."""

    ours: str
    vllm: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class Turns:
    """One figure of both, and in each round by how much ours was more than vLLM's."""

    pair: Alternated
    added: tuple[float, ...]


def bench_overhead(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Start both servers and compare them.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    if options.url is not None:
        raise TargetError("`bench overhead` starts both servers itself. Leave --url out.")
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
        streams = _by_turns(pair, model, throughput, _THROUGHPUT_SEED, options)
        alone = _by_turns(pair, model, ttft, _TTFT_SEED, options)
        options.say(f"{name}: {streams.pair.ratio:.3f} of vLLM's tok/s; added TTFT p50 {_shown(alone.added)} ms")
        results += [_throughput(name, streams.pair), *_ttft(name, alone)]
    return tuple(results)


def tokens_per_s(url: str, model: str, seed: int) -> float:
    """Output tokens per second of NUM_STREAMS users who ask again as soon as they are answered.

    Raises:
        TargetError: A request failed.
    """
    config = _config(url, model, seed, NUM_STREAMS, _WAVES * NUM_STREAMS, NUM_TOKENS)
    return NUM_TOKENS * measured_by_us(config)["requests/s"]


def ttft_p50_ms(url: str, model: str, seed: int) -> float:
    """Time to first token of one user who asks for short answers, one after the other.

    Raises:
        TargetError: A request failed.
    """
    return measured_by_us(_config(url, model, seed, 1, _NUM_ALONE, _NUM_ALONE_TOKENS))["TTFT p50"]


def vllm_command(
    config: ServeConfig, base_folder: Path, port: int, adapters: Mapping[str, Path], *, is_stock: bool
) -> list[str]:
    """vLLM's own OpenAI server with the engine settings of ours (`serve/engine/arguments.py`); a test compares them.

    Args:
        adapters: Folder by the name under which it is asked for.
        is_stock: Without what only our server makes use of.
    """
    flags: dict[str, object] = {
        "--host": "127.0.0.1",
        "--port": port,
        "--uvicorn-log-level": "warning",
        "--model": base_folder,
        "--served-model-name": config.served_model_name,
        "--dtype": "bfloat16",
        "--max-model-len": config.max_model_len,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--max-loras": config.max_loras,
        "--max-cpu-loras": config.max_cpu_loras,
        "--max-lora-rank": config.max_lora_rank,
    }
    if shutil.which("nvidia-smi"):
        flags["--gpu-memory-utilization"] = config.gpu_memory_utilization
    else:
        flags["--kv-cache-memory-bytes"] = config.kv_cache_bytes
    switches = ["--disable-uvicorn-access-log", "--enable-lora", "--enable-prompt-tokens-details"]
    if not is_stock:
        flags["--scheduling-policy"] = "priority"
        flags["--worker-extension-cls"] = "serve.engine.worker.AdapterInspection"
    if config.tool_call_parser:
        flags["--tool-call-parser"] = config.tool_call_parser
        switches.append("--enable-auto-tool-choice")
    modules = [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]
    words = [str(word) for flag in flags.items() for word in flag] + switches
    return [sys.executable, "-m", _VLLM_SERVER, *words, "--lora-modules", *modules]


def thread_settings(environment: Mapping[str, str], topology: Path = _TOPOLOGY) -> dict[str, str]:
    """How vLLM's threads are set on a CPU, for both servers alike.

    What the environment says stays; else the defaults of `lorikeet serve` (`serve/engine/cpu.py`): all of few cores
    compute, with Intel's OpenMP where it is installed.
    """
    given = {name: environment[name] for name in THREAD_SETTINGS if name in environment}
    runtime, cores = Path(sys.prefix) / "lib" / "libiomp5.so", _physical_cores(topology)
    is_set = THREAD_SETTINGS[0] in given or "omp" in given.get("LD_PRELOAD", "")
    if is_set or not runtime.is_file() or not 2 <= len(cores) <= _FEW_CORES:
        return given
    preloaded = ":".join(filter(None, (given.get("LD_PRELOAD"), str(runtime))))
    return dict(zip(THREAD_SETTINGS, (",".join(map(str, cores)), preloaded), strict=True))


def vllm_environment(environment: Mapping[str, str], *, is_stock: bool) -> dict[str, str]:
    """For vLLM's own server what ours sets for itself. Stock: every plugin of vLLM's but this project's."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    plugins = sorted({found.name for found in entry_points(group=_PLUGINS)} - {"lorikeet"})
    stock = {"VLLM_PLUGINS": ",".join(plugins)} if is_stock else {}
    return {**environment, **quiet, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0", **stock}


@contextmanager
def kept_logs() -> Iterator[Path]:
    """A folder for log files: removed at the end, but kept, named and quoted where something fails.

    Raises:
        TargetError: As what failed in the block.
    """
    folder, is_kept = Path(mkdtemp(prefix="lorikeet-bench-overhead-")), False
    try:
        yield folder
    except (LoadtestError, ServerError) as error:
        is_kept = True
        logs = sorted(folder.glob("*.log"))
        quoted = "" if isinstance(error, ServerError) else "".join(f"\n{log.name}:\n{last_lines(log)}" for log in logs)
        raise TargetError(f"{error}{quoted}\nThe logs are kept in {folder}.") from error
    finally:
        if not is_kept:
            shutil.rmtree(folder)


@contextmanager
def _both_servers(options: BenchOptions) -> Iterator[Pair]:
    config, threads = load_serve(options.serve_file), thread_settings(options.environment)
    config = config.model_copy(update=_SETTINGS_OF_BOTH)
    shown = " ".join(f"{name}={value}" for name, value in threads.items())
    options.say(f"both servers: {shown or 'no thread settings'}")
    environment, base_folder = {**options.environment, **threads}, (options.home.bases / config.base).resolve()
    with kept_logs() as folder:
        copies, names = copy_adapter(options.home, options.adapter, 1, folder / "home")
        store = AdapterStore(copies.adapters)
        target = store.resolve(names[0])
        adapters = {str(target): store.folder(target).resolve()}
        serve_file = folder / "serve.yaml"
        serve_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with running_server(serve_file, copies.root, folder / "lorikeet.log", environment=environment) as ours:
            port, environment = free_port(), vllm_environment(environment, is_stock=options.is_stock)
            command = vllm_command(config, base_folder, port, adapters, is_stock=options.is_stock)
            url, log_file = f"http://127.0.0.1:{port}", folder / "vllm.log"
            with running_command(command, url, "/health", log_file, environment=environment) as theirs:
                models = {"base": config.served_model_name, "one adapter": str(target)}
                yield Pair(f"{ours.url}/v1", f"{theirs.url}/v1", models)


def _by_turns(pair: Pair, model: str, measure: Measure, first_seed: int, options: BenchOptions) -> Turns:
    """In a round, both are asked the same; in each round something else, or their prefix caches would answer."""
    values: dict[str, list[float]] = {pair.vllm: [], pair.ours: []}

    def measured(url: str) -> float:
        values[url].append(measure(url, model, first_seed + len(values[url])))
        return values[url][-1]

    # An idle worker of the other server spins for a second after its last request, hence twice the usual rest.
    turns = alternate(partial(measured, pair.vllm), partial(measured, pair.ours), options.rounds, 2 * options.pause_s)
    added = tuple(mine - theirs for theirs, mine in zip(values[pair.vllm], values[pair.ours], strict=True))
    return Turns(turns, added)


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


def _throughput(name: str, pair: Alternated) -> BenchResult:
    result = _row(f"{name}: {NUM_STREAMS} streams (baseline: vLLM's own server)", "tok/s", pair)
    target = {"target": f"ratio at least {LEAST_RATIO}", "is_pass": pair.ratio >= LEAST_RATIO}
    return result.model_copy(update=target)


def _ttft(name: str, turns: Turns) -> tuple[BenchResult, BenchResult]:
    added_ms = median(turns.added)
    return (
        _row(f"{name}: TTFT p50, one stream (baseline: vLLM's own server)", "ms", turns.pair),
        BenchResult(
            name=f"{name}: TTFT p50 added",
            value=added_ms,
            unit="ms",
            target=f"below {MOST_ADDED_TTFT_MS:g} ms",
            is_pass=added_ms < MOST_ADDED_TTFT_MS,
        ),
    )


def _row(name: str, unit: str, pair: Alternated) -> BenchResult:
    return BenchResult(
        name=name,
        value=pair.candidate,
        unit=unit,
        baseline=pair.baseline,
        ratio=pair.ratio,
        ratio_interval=(pair.ratio_interval.low, pair.ratio_interval.high),
    )


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _physical_cores(topology: Path) -> tuple[int, ...]:
    """One logical CPU of each physical core that this process may use; every one, where the kernel does not tell."""
    first_of: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ():
        siblings = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
        first_of.setdefault(siblings.read_text().strip() if siblings.is_file() else str(number), number)
    return tuple(first_of.values())
