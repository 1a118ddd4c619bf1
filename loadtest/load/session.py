"""A load test from its configuration to its result: the one call that the command line, sweeps and benchmarks share."""

import asyncio
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import httpx

from config.loadtest import LoadtestConfig
from loadtest.errors import TargetError
from loadtest.load.client import open_client
from loadtest.load.records import RunResult
from loadtest.load.runner import Runner, RunOutcome, RunProgress
from loadtest.load.workload import plan

_CHECK_TIMEOUT_S = 10.0

Watch = Callable[[RunProgress], AbstractContextManager[object]]
"""What to do around a run, e.g. show its progress."""


def run_load(
    config: LoadtestConfig,
    datasets: Path,
    *,
    name: str = "run",
    api_key: str | None = None,
    watch: Watch = lambda _: nullcontext(),
) -> RunResult:
    """Run a load test. The first Ctrl-C ends it early, and what was measured until then is the result.

    Args:
        datasets: Folder of the built data sets (`Home.datasets`), for prompts of `kind: dataset`.

    Raises:
        DatasetError: A data set that the configuration names is not built.
        TraceError: Its trace cannot be read.
        TargetError: Nobody answers at its URL.
    """
    return asyncio.run(_run(config, datasets, name, api_key, watch))


async def _run(config: LoadtestConfig, datasets: Path, name: str, api_key: str | None, watch: Watch) -> RunResult:
    requests = plan(config, datasets)
    async with open_client(api_key) as client:
        unknown = await _unlisted_models(client, config)
    started_at, start_s = datetime.now(UTC), time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - start_s

    async with open_client(api_key, clock=clock) as client:
        runner = Runner(config, client, clock)
        with watch(runner.progress), _stops_on_interrupt(runner):
            outcome = await runner.run(requests)
    return RunResult(
        name=name,
        url=config.url,
        started_at=started_at.isoformat(timespec="seconds"),
        machine=machine(),
        workload=config.model_dump(mode="json"),
        seed=config.seed,
        duration_s=outcome.duration_s,
        was_stopped=outcome.was_stopped,
        generator=outcome.generator,
        records=outcome.records,
        warnings=_warnings(outcome, unknown),
    )


def machine() -> str:
    """Description of the generator's machine."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


async def _unlisted_models(client: httpx.AsyncClient, config: LoadtestConfig) -> tuple[str, ...]:
    """Models of the mix missing from `GET /models`; none if the server has no such list.

    Raises:
        TargetError: The server does not respond.
    """
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            answer = await client.get(f"{config.url.rstrip('/')}/models")
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise TargetError(
            f"No server at {config.url!r} ({str(error) or 'time-out'}). Start a server, e.g. `lorikeet serve`, "
            "or give another `--url`; it ends with /v1."
        ) from error
    try:
        listed = {model["id"] for model in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return ()
    named = (*config.mix.models, *((config.mix.base,) if config.mix.base else ()))
    return tuple(model for model in named if model not in listed)


@contextmanager
def _stops_on_interrupt(runner: Runner) -> Iterator[None]:
    """Ctrl-C sets `stop`, once; a second one ends the program as ever. Only a main thread can watch signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def stop(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(runner.stop.set)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _warnings(outcome: RunOutcome, unknown: tuple[str, ...]) -> tuple[str, ...]:
    figures, records = outcome.generator, outcome.records
    warnings = [f"The server does not list the model {model!r}." for model in unknown]
    if outcome.was_stopped:
        warnings.append("The run was interrupted.")
    if figures.is_bottleneck:
        warnings.append(
            f"The generator was the bottleneck (late by {figures.lag_p99_s * 1000:.1f} ms at p99, "
            f"{figures.cpu_share:.0%} of a core): latencies are partly its own. Lower the rate, or give it a free core."
        )
    if records and not any(record.is_ok for record in records):
        warnings.append(f"No request succeeded; the first error: {records[0].error_message}")
    return tuple(warnings)
