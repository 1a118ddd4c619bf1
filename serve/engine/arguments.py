"""From our configuration to vLLM's arguments and environment."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from config.serve import ServeConfig
from serve.engine.memory import default_kv_cache_bytes

_JSON_LOGGING = Path(__file__).with_name("json_logging.json")


def set_environment(log_level: str, log_format: str) -> None:
    """Environment of vLLM and its child processes; call before vllm is imported.

    Private data must not leave: usage statistics are off, and no hub is asked.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if log_level == "debug" else "ERROR")
    if log_format == "json":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(_JSON_LOGGING))  # of its other processes too
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The server has threads, which a fork would not copy; and a forked process keeps others' pipes open.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # vLLM's resolvers would read adapters from paths that a client names; ours is the only one.
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "0"
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"  # by our own count: see finite.py


def server_arguments(config: ServeConfig, base_folder: Path) -> Namespace:
    """The arguments of vLLM's own server (`vllm serve`), parsed by its own parser."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags: dict[str, object] = {
        "--model": base_folder,
        "--served-model-name": config.served_model_name,
        "--dtype": "bfloat16",
        "--max-model-len": config.max_model_len,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--max-loras": config.max_loras,
        "--max-cpu-loras": config.max_cpu_loras,
        "--max-lora-rank": config.max_lora_rank,
        "--scheduling-policy": "priority",
        "--worker-extension-cls": "serve.engine.worker.AdapterInspection",
        "--scheduler-cls": f"serve.engine.scheduler.Lorikeet{'' if current_platform.is_cpu() else 'Async'}Scheduler",
        # By default the first request that needs a grammar would choose for all others.
        "--structured-outputs-config": json.dumps({"backend": "xgrammar"}),
    }
    if current_platform.is_cpu():
        num_tokens = config.max_num_seqs * config.max_model_len
        flags["--kv-cache-memory-bytes"] = config.kv_cache_bytes or default_kv_cache_bytes(base_folder, num_tokens)
    else:
        flags["--gpu-memory-utilization"] = config.gpu_memory_utilization
    switches = ["--enable-lora", "--enable-prompt-tokens-details"]
    if current_platform.is_cpu() and not config.cpu_compile:
        switches.append("--enforce-eager")
    if config.tool_call_parser:
        flags["--tool-call-parser"] = config.tool_call_parser
        switches.append("--enable-auto-tool-choice")
    words = [str(word) for flag in flags.items() for word in flag] + switches
    parser: Any = FlexibleArgumentParser
    arguments: Namespace = make_arg_parser(parser()).parse_args(words)
    return arguments
