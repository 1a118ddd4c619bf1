"""`lorikeet serve --cluster ray` for `lorikeet bench cluster`: its replicas, their processes, and loads on it."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from config.home import Home
from config.loadtest import (
    Arrival,
    ClosedArrival,
    FixedLength,
    LoadtestConfig,
    MixConfig,
    Popularity,
    SyntheticPrompts,
    ZipfPopularity,
)
from config.serve import ServeConfig
from loadtest.bench.cost import require_success
from loadtest.bench.options import BenchOptions
from loadtest.bench.server import RunningServer, ServerError, free_port, last_lines, running_command
from loadtest.errors import TargetError
from loadtest.load.records import RequestRecord, RunResult
from loadtest.load.session import run_load

NUM_TOKENS = 32
_NUM_WORDS = 48
_READY_TIMEOUT_S = 240.0
_WARM_UP_REQUESTS = 32
_ASK_EVERY_S = 1.0
_REQUEST_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 120.0
"""A load of a number of requests is stopped after this."""
_SCRAPE_TIMEOUT_S = 30.0
_REQUESTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_TITLE = ":Replica"
"""In the command line of each replica's process."""


@contextmanager
def ray_server(
    config: ServeConfig,
    home: Home,
    folder: Path,
    options: BenchOptions,
    replicas: int,
    *,
    routing: str = "affinity",
    max_replicas: int | None = None,
) -> Iterator[RunningServer]:
    """`lorikeet serve --cluster ray`, with all its replicas ready and warm, or the fewest; `ready_s`: their start time.

    Warm: they have answered for the base, so that first kernels are not measured. No adapter is loaded.

    Raises:
        ServerError: They did not become ready.
    """
    serve_file, log_file, port = folder / "serve.yaml", folder / "cluster.log", free_port()
    serve_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["serve", str(serve_file), "--home", str(home.root), "--port", str(port)]
    words += ["--cluster", "ray", "--replicas", str(replicas), "--routing", routing]
    words += ["--max-replicas", str(max_replicas)] if max_replicas else []
    command = [sys.executable, "-P", "-m", "lorikeet", *words]
    url, start_s = f"http://127.0.0.1:{port}", time.monotonic()
    with running_command(command, url, "/ready", log_file, _READY_TIMEOUT_S, environment=options.environment) as server:
        wait_for_replicas(server, replicas)
        ready_s = time.monotonic() - start_s
        warm_up(server, config)
        yield RunningServer(server.url, server.log_file, ready_s, server.pid)


def warm_up(server: RunningServer, config: ServeConfig) -> None:
    """Full batches for the base.

    Raises:
        TargetError: A request failed.
    """
    run = load_on(server, (config.served_model_name,), num_requests=_WARM_UP_REQUESTS, num_tokens=8, seed=0)
    require_success(run.records, server.url)


def wait_for_replicas(server: RunningServer, number: int, timeout_s: float = _READY_TIMEOUT_S) -> float:
    """Wait until so many replicas answer; returns for how long.

    Raises:
        ServerError: They did not in time.
    """
    start_s = time.monotonic()
    while len(replicas_of(server.url)) != number:
        if time.monotonic() - start_s > timeout_s:
            raise ServerError(
                f"The server did not have {number} replicas after {timeout_s:.0f} s.\n{last_lines(server.log_file)}"
            )
        time.sleep(_ASK_EVERY_S)
    return time.monotonic() - start_s


def metrics_of(url: str) -> str:
    """The scrape of all replicas.

    Raises:
        TargetError: The server did not answer with one.
    """
    try:
        return httpx.get(f"{url}/metrics", timeout=_SCRAPE_TIMEOUT_S, trust_env=False).raise_for_status().text
    except httpx.HTTPError as error:
        raise TargetError(f"{url}/metrics was not answered: {error!r}") from error


def replicas_of(url: str) -> dict[str, float]:
    """Requests that each replica has, running or waiting, by its rank; empty while the server does not answer."""
    counts: dict[str, float] = {}
    try:
        text = metrics_of(url)
    except TargetError:
        return counts
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            rank, is_count = sample.labels["replica"], sample.name in _REQUESTS
            counts[rank] = counts.get(rank, 0.0) + (sample.value if is_count else 0.0)
    return counts


def replica_processes(server: RunningServer) -> list[psutil.Process]:
    """One process for each replica, the oldest first.

    Raises:
        ServerError: The server has ended.
    """
    if not psutil.pid_exists(server.pid):
        raise ServerError(f"The server has ended.\n{last_lines(server.log_file)}")
    children = psutil.Process(server.pid).children(recursive=True)
    found = [process for process in children if _TITLE in " ".join(_command(process))]
    return sorted(found, key=lambda process: process.create_time())


def load_on(
    server: RunningServer,
    names: tuple[str, ...],
    *,
    num_requests: int = 1_000_000,
    duration_s: float = _LOAD_TIMEOUT_S,
    streams: int = 16,
    num_tokens: int = NUM_TOKENS,
    arrival: Arrival | None = None,
    popularity: Popularity | None = None,
    seed: int = 1,
) -> RunResult:
    """Requests by Zipf's law over the names in a closed loop, where nothing else is given. Some may have failed.

    Raises:
        KeyboardInterrupt: It was interrupted: what was measured until then is of another load.
    """
    config = LoadtestConfig(
        url=f"{server.url}/v1",
        mix=MixConfig(models=names, popularity=popularity or ZipfPopularity(kind="zipf", s=1.0)),
        arrival=arrival or ClosedArrival(kind="closed", concurrency=streams),
        num_requests=num_requests,
        duration_s=duration_s,
        prompts=SyntheticPrompts(num_words=FixedLength(value=_NUM_WORDS)),
        max_tokens=FixedLength(value=num_tokens),
        request_timeout_s=_REQUEST_TIMEOUT_S,
        drain_timeout_s=_REQUEST_TIMEOUT_S,
        seed=seed,
    )
    run = run_load(config, Path())
    if run.was_stopped:
        raise KeyboardInterrupt
    return run


def wrong_answers(records: tuple[RequestRecord, ...], versions: Mapping[str, str]) -> list[RequestRecord]:
    """Of the answers that ended well: another version's, or not of `NUM_TOKENS` tokens.

    Args:
        versions: What each name has to be answered by, as `medical@3`.
    """
    answered = (record for record in records if record.is_ok)
    return [
        record
        for record in answered
        if record.served_by != versions[record.model] or record.num_completion_tokens != NUM_TOKENS
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
