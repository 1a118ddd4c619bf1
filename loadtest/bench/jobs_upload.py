"""Uploads in `lorikeet bench jobs`: a large file in one request, and the server's memory meanwhile."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from loadtest.bench.cost import ComparedServer
from loadtest.bench.jobs_api import JobsApi, Purpose
from loadtest.bench.memory import MemorySample, sampled_memory
from loadtest.bench.options import BenchOptions
from loadtest.bench.processes import tree_usage
from loadtest.bench.results import BenchResult

NUM_BYTES = 200_000_000
LEAST_MB_PER_S = 50.0
MOST_ADDED_MB = 30.0

_EVERY_S = 0.1
_LOOK_S, _SAME_LOOKS, _MOST_LOOKS = 1.0, 5, 60
_STEADY_BYTES = 1_000_000
_PURPOSES: tuple[Purpose, ...] = ("batch", "fine-tune")


def bench_upload(side: ComparedServer, folder: Path, options: BenchOptions) -> tuple[BenchResult, ...]:
    """Upload a file for each purpose; the first, small one is not measured.

    Args:
        folder: For the files.

    Raises:
        TargetError: The server refused it.
    """
    client = JobsApi(side.url)
    results: list[BenchResult] = []
    for purpose in _PURPOSES:
        path = folder / f"{purpose}.jsonl"
        _write(path, purpose, NUM_BYTES // 100)
        client.delete(_upload(client, path, purpose))
        _write(path, purpose, NUM_BYTES)
        wait_until_steady(lambda: tree_usage(side.pid).resident_bytes)
        samples: list[MemorySample] = []
        with sampled_memory(side.pid, samples, _EVERY_S):
            start_s = time.monotonic()
            uploaded = _upload(client, path, purpose)
            duration_s = time.monotonic() - start_s
        client.delete(uploaded)
        path.unlink()
        mb_per_s = NUM_BYTES / 1e6 / duration_s
        added_mb = (max(sample.resident_bytes for sample in samples) - samples[0].resident_bytes) / 1e6
        options.say(f"200 MB for {purpose}: {mb_per_s:.0f} MB/s, {added_mb:+.0f} MB of memory")
        results += [
            BenchResult(
                name=f"upload of 200 MB, purpose {purpose}",
                value=mb_per_s,
                unit="MB/s",
                target=f"at least {LEAST_MB_PER_S:g} MB/s",
                is_pass=mb_per_s >= LEAST_MB_PER_S,
            ),
            BenchResult(
                name=f"memory added by it, purpose {purpose}",
                value=added_mb,
                unit="MB",
                target=f"at most {MOST_ADDED_MB:g} MB",
                is_pass=added_mb <= MOST_ADDED_MB,
            ),
        ]
    return tuple(results)


def wait_until_steady(resident_bytes: Callable[[], int], sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until memory stays for some seconds: a new server's helpers start after it is ready. At most a minute."""
    seen: list[int] = []
    for _ in range(_MOST_LOOKS):
        seen = [*seen[1 - _SAME_LOOKS :], resident_bytes()]
        if len(seen) == _SAME_LOOKS and max(seen) - min(seen) < _STEADY_BYTES:
            return
        sleep(_LOOK_S)


def _write(path: Path, purpose: Purpose, num_bytes: int) -> None:
    """Lines of some 1 KB, as many as there is room for."""
    line = json.dumps(_row(purpose)).encode() + b"\n"
    path.write_bytes(line * (num_bytes // len(line)))


def _row(purpose: Purpose) -> dict[str, object]:
    messages = [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "word " * 80}]
    if purpose == "fine-tune":
        return {"messages": messages}
    return {"custom_id": "line", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": messages}}


def _upload(client: JobsApi, path: Path, purpose: Purpose) -> str:
    """Upload a file; returns its path in the API."""
    with path.open("rb") as file:
        return f"/files/{client.upload(file, purpose)}"
