"""The servers that benchmarks compare, on the same engine settings: ours, and vLLM's own."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import yaml

from adapters.store.store import AdapterStore
from config.home import Home
from config.load import load_serve
from config.serve import ServeConfig
from loadtest.bench.options import BenchOptions
from loadtest.bench.server import RunningServer, ServerError, free_port, last_lines, running_command, running_server
from loadtest.errors import LoadtestError, TargetError

THREAD_SETTINGS = ("VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")
# Two engines share the memory of a GPU (on a CPU the key has no effect), and nothing else goes on: what the quality
# monitor costs is the subject of a benchmark of its own.
_SETTINGS_OF_BOTH = {
    "gpu_memory_utilization": 0.4,
    "keys_file": None,
    "metrics_port": None,
    "remote_store": None,
    "golden_replay": False,
    "quality": {"enabled": False},
}
# Where the configuration leaves it to the server: vLLM's own must be told the same.
_KV_CACHE_BYTES = 1 << 30
_FEW_CORES = 4
_TOPOLOGY = Path("/sys/devices/system/cpu")
_ENGINE_VARIABLE = "LORIKEET_ENGINE"  # serve/engine/plugin.py
# What `vllm serve` runs. The `vllm` command itself fails where the CPU build is installed: it asks for the version of a
# distribution that has another name there.
_VLLM_SERVER = "vllm.entrypoints.launchers.api_server.entry"


def serve_config(options: BenchOptions, **changes: object) -> ServeConfig:
    """The configuration of `--serve`, changed so that two servers can run side by side.

    Raises:
        ConfigError: It cannot be read.
        TargetError: There is a `--url`: a benchmark that compares servers starts them itself.
    """
    if options.url is not None:
        raise TargetError("This benchmark starts its servers itself. Leave --url out.")
    config = load_serve(options.serve_file).model_dump(exclude_unset=True)  # defaults follow the changes
    config["kv_cache_bytes"] = config.get("kv_cache_bytes") or _KV_CACHE_BYTES
    return ServeConfig.model_validate(config | _SETTINGS_OF_BOTH | changes)


def made_folder(path: Path) -> Path:
    """A new folder for what one of several servers writes."""
    path.mkdir()
    return path


def base_folder(options: BenchOptions, config: ServeConfig) -> Path:
    return (options.home.bases / config.base).resolve()


def adapter_folders(home: Home, names: tuple[str, ...]) -> dict[str, Path]:
    """Folder of each adapter's stable version, by that version's name (`medical@3`)."""
    store = AdapterStore(home.adapters)
    targets = [store.resolve(name) for name in names]
    return {str(target): store.folder(target).resolve() for target in targets}


@contextmanager
def our_server(
    config: ServeConfig, home: Home, folder: Path, environment: Mapping[str, str]
) -> Iterator[RunningServer]:
    """`lorikeet serve` with this configuration.

    Args:
        folder: For its configuration and its log.

    Raises:
        ServerError: It did not become ready.
    """
    serve_file = folder / "serve.yaml"
    serve_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with running_server(serve_file, home.root, folder / "lorikeet.log", environment=environment) as server:
        yield server


@contextmanager
def vllm_server(
    config: ServeConfig,
    base: Path,
    adapters: Mapping[str, Path],
    folder: Path,
    environment: Mapping[str, str],
    *,
    is_stock: bool,
) -> Iterator[RunningServer]:
    """vLLM's own server, with adapters by name and folder; without any, LoRA is off.

    Args:
        environment: As `vllm_environment` gives it.
        folder: For its log.

    Raises:
        ServerError: It did not become ready.
    """
    port = free_port()
    command = vllm_command(config, base, port, adapters, is_stock=is_stock)
    url, log_file = f"http://127.0.0.1:{port}", folder / "vllm.log"
    with running_command(command, url, "/health", log_file, environment=environment) as server:
        yield server


def vllm_command(
    config: ServeConfig, base_folder: Path, port: int, adapters: Mapping[str, Path], *, is_stock: bool
) -> list[str]:
    """vLLM's own OpenAI server with the engine settings of ours (`serve/engine/arguments.py`); a test compares them.

    Args:
        adapters: Folder by the name under which it is asked for; without any, LoRA is off.
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
    }
    switches = ["--disable-uvicorn-access-log", "--enable-prompt-tokens-details"]
    if adapters:
        flags["--max-loras"] = config.max_loras
        flags["--max-cpu-loras"] = config.max_cpu_loras
        flags["--max-lora-rank"] = config.max_lora_rank
        switches.append("--enable-lora")
    if shutil.which("nvidia-smi"):
        flags["--gpu-memory-utilization"] = config.gpu_memory_utilization
    else:
        flags["--kv-cache-memory-bytes"] = config.kv_cache_bytes
    if not is_stock:
        flags["--scheduling-policy"] = "priority"
        flags["--worker-extension-cls"] = "serve.engine.worker.AdapterInspection"
        kind = "Async" if shutil.which("nvidia-smi") else ""
        flags["--scheduler-cls"] = f"serve.engine.scheduler.Lorikeet{kind}Scheduler"
        flags["--structured-outputs-config"] = json.dumps({"backend": "xgrammar"})
        if not config.cpu_compile:
            switches.append("--enforce-eager")
    if config.tool_call_parser:
        flags["--tool-call-parser"] = config.tool_call_parser
        switches.append("--enable-auto-tool-choice")
    modules = [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]
    words = [str(word) for flag in flags.items() for word in flag] + switches
    return [sys.executable, "-m", _VLLM_SERVER, *words, *(["--lora-modules", *modules] if modules else [])]


def thread_settings(environment: Mapping[str, str], topology: Path = _TOPOLOGY) -> dict[str, str]:
    """How vLLM's threads are set on a CPU, for both servers alike.

    What the environment says stays; else the defaults of `lorikeet serve` (`serve/engine/cpu/threads.py`): all of few
    cores compute, with Intel's OpenMP where it is installed.
    """
    given = {name: environment[name] for name in THREAD_SETTINGS if name in environment}
    runtime, cores = Path(sys.prefix) / "lib" / "libiomp5.so", physical_cores(topology)
    is_set = THREAD_SETTINGS[0] in given or "omp" in given.get("LD_PRELOAD", "")
    if is_set or not runtime.is_file() or not 2 <= len(cores) <= _FEW_CORES:
        return given
    preloaded = ":".join(filter(None, (given.get("LD_PRELOAD"), str(runtime))))
    return dict(zip(THREAD_SETTINGS, (",".join(map(str, cores)), preloaded), strict=True))


def same_threads(options: BenchOptions) -> dict[str, str]:
    """Environment of all servers, with the same number of threads; logs that number."""
    threads = thread_settings(options.environment)
    shown = " ".join(f"{name}={value}" for name, value in threads.items())
    options.say(f"threads: {shown or 'as vLLM sets them'}")
    return {**options.environment, **threads}


def vllm_environment(environment: Mapping[str, str], *, is_stock: bool) -> dict[str, str]:
    """For vLLM's own server what ours sets for itself. Stock: without the mark on which our plugin acts."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    mark = {} if is_stock else {_ENGINE_VARIABLE: "1"}
    return {**environment, **quiet, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0", **mark}


@contextmanager
def kept_logs() -> Iterator[Path]:
    """A folder for log files: removed at the end, but kept, named and quoted where something fails.

    Raises:
        TargetError: As what failed in the block.
    """
    folder, is_kept = Path(mkdtemp(prefix="lorikeet-bench-")), False
    try:
        yield folder
    except (LoadtestError, ServerError) as error:
        is_kept = True
        logs = sorted(folder.rglob("*.log"))
        quoted = "" if isinstance(error, ServerError) else "".join(f"\n{log.name}:\n{last_lines(log)}" for log in logs)
        raise TargetError(f"{error}{quoted}\nThe logs are kept in {folder}.") from error
    finally:
        if not is_kept:
            shutil.rmtree(folder)


def physical_cores(topology: Path = _TOPOLOGY) -> tuple[int, ...]:
    """One logical CPU of each physical core that this process may use; every one, where the kernel does not tell."""
    first_of: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ():
        siblings = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
        first_of.setdefault(siblings.read_text().strip() if siblings.is_file() else str(number), number)
    return tuple(first_of.values())
