"""A server on a tiny base: it starts soon, and under `pytest -n` computes on one core, so that two run side by side."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from config.home import Home
from loadtest.bench.server import running_server
from train.data.encode import Encoded


@dataclass(frozen=True)
class TinyServer:
    url: str
    http: httpx.Client
    log_file: Path


def write_config(folder: Path, **changes: Any) -> Path:
    """Small and uncompiled; nothing runs beside the engine."""
    file = folder / "serve.yaml"
    config: dict[str, Any] = {
        "base": "tiny",
        "served_model_name": "tiny",
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 8,
        "max_model_len": 256,
        "kv_cache_bytes": 1 << 26,
        "cpu_compile": False,
        "quality": {"enabled": False},
        "jobs": {"enabled": False},
    }
    file.write_text(yaml.safe_dump(config | changes))
    return file


@contextmanager
def tiny_server(folder: Path, home: Home, **changes: Any) -> Iterator[TinyServer]:
    """Its configuration and its log are in `folder`."""
    log_file = folder / "serve.log"
    with (
        running_server(write_config(folder, **changes), home.root, log_file, environment=_environment()) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        yield TinyServer(server.url, http, log_file)


def _environment() -> dict[str, str]:
    """One core for each process of `pytest -n`: OpenMP's threads of two engines would wait for each other's."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return dict(os.environ)
    cores = sorted(os.sched_getaffinity(0))
    return os.environ | {"VLLM_CPU_OMP_THREADS_BIND": str(cores[int(worker.removeprefix("gw")) % len(cores)])}


def forced(http: httpx.Client, model: str, example: Encoded) -> Iterator[float]:
    """Log-probabilities of an example's answer tokens, as the server computes them."""
    ids = [*example.prompt_ids, *example.answer_ids]
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    positions = response.json()["choices"][0]["prompt_logprobs"][-len(example.answer_ids) :]
    for token, position in zip(example.answer_ids, positions, strict=True):
        yield position[str(token)]["logprob"]


def mean_gap(want: tuple[float, ...], got: list[float]) -> float:
    return sum(abs(w - g) for w, g in zip(want, got, strict=True)) / len(want)
