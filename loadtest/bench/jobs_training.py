"""A fine-tuning job in `lorikeet bench jobs`: what streams feel of it, and how soon it runs and its model answers."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from loadtest.bench.cost import ComparedServer
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.streams import Stretch, streams_of, watch_streams
from loadtest.errors import TargetError

NUM_STREAMS = 8
NUM_ROWS = 300
WATCHED_S = 20.0
MOST_ITL_P99 = 1.5
LEAST_THROUGHPUT = 0.7
MOST_UNTIL_RUNNING_S = 5.0
MOST_UNTIL_ANSWER_S = 10.0

_NUM_STREAM_TOKENS = 1000
_POLL_S = 0.1
_TIMEOUT_S = 900.0


class JobClient:
    """Fine-tuning jobs of one server.

    Args:
        url: With `/v1`.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False, transport=transport)

    def submit(self, base: str, rows: bytes) -> str:
        """Id of a job with few settings: one epoch, in batches of eight."""
        files = {"file": ("rows.jsonl", rows)}
        file_id = self._asked(self._client.post("/files", data={"purpose": "fine-tune"}, files=files))["id"]
        settings = {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}
        method = {"type": "supervised", "supervised": settings}
        body = {"model": base, "training_file": file_id, "suffix": "bench", "method": method}
        job_id: str = self._asked(self._client.post("/fine_tuning/jobs", json=body))["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        return self._asked(self._client.get(f"/fine_tuning/jobs/{job_id}"))

    def last_step(self, job_id: str) -> int:
        """Number of the last step that was reported; 0 before the first."""
        events = self._asked(self._client.get(f"/fine_tuning/jobs/{job_id}/events"))["data"]
        return max((event["data"]["step"] for event in events if event["type"] == "metrics"), default=0)

    def wait(self, job_id: str, is_enough: Callable[[], bool]) -> None:
        """Raises TargetError where the job fails or takes too long before."""
        end_s = time.monotonic() + _TIMEOUT_S
        while not is_enough():
            job = self.job(job_id)
            if job["status"] in ("failed", "cancelled") or time.monotonic() > end_s:
                raise TargetError(f"Job {job_id} is {job['status']}: {job['error']}")
            time.sleep(_POLL_S)

    def ask(self, model: str) -> None:
        """Raises TargetError where the model does not answer."""
        body = {"model": model, "messages": [{"role": "user", "content": "Which number?"}], "max_tokens": 1}
        self._asked(self._client.post("/chat/completions", json=body))

    @staticmethod
    def _asked(response: httpx.Response) -> dict[str, Any]:
        if response.is_error:
            raise TargetError(f"{response.request.url.path}: {response.status_code}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer


def bench_training(side: ComparedServer, base: str, model: str, options: BenchOptions) -> tuple[BenchResult, ...]:
    """Streams without a job and while one trains, and the job's own times.

    Args:
        base: Served name of the base, on which the job trains.
        model: What the streams ask.

    Raises:
        TargetError: A stream or the job failed.
    """
    client = JobClient(side.url)
    without = _watch(side, model, seed=1)
    submitted_s = time.monotonic()
    job_id = client.submit(base, training_rows())
    client.wait(job_id, lambda: client.job(job_id)["status"] == "running")
    until_running_s = time.monotonic() - submitted_s
    client.wait(job_id, lambda: client.last_step(job_id) > 0)
    beside = _watch(side, model, seed=2)
    if client.job(job_id)["status"] == "succeeded":
        raise TargetError("The job ended while it was watched. Raise NUM_ROWS in loadtest/bench/jobs_training.py.")
    until_answer_s = _until_answer_s(client, job_id)
    itl, tokens = beside.itl_p99_s / without.itl_p99_s, beside.tokens_per_s / without.tokens_per_s
    options.say(f"beside a training: p99 of ITL {itl:.2f} times, {tokens:.2f} of the tokens/s")
    streams = f"{NUM_STREAMS} streams while a job trains (baseline: without)"
    return (
        _compared(
            f"p99 ITL of {streams}",
            "ms",
            1000 * without.itl_p99_s,
            1000 * beside.itl_p99_s,
            f"ratio at most {MOST_ITL_P99:g}",
            itl <= MOST_ITL_P99,
        ),
        _compared(
            f"throughput of {streams}",
            "tok/s",
            without.tokens_per_s,
            beside.tokens_per_s,
            f"ratio at least {LEAST_THROUGHPUT:g}",
            tokens >= LEAST_THROUGHPUT,
        ),
        _below("from submission to `running`", until_running_s, MOST_UNTIL_RUNNING_S),
        _below("from the last step to the first answer", until_answer_s, MOST_UNTIL_ANSWER_S),
    )


def training_rows() -> bytes:
    """Examples that differ, of some hundred tokens."""
    rows = []
    for number in range(NUM_ROWS):
        question = f"Number {number}? " + "Say which it is. " * 12
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {number}."}]
        rows.append(json.dumps({"messages": turns}))
    return "\n".join(rows).encode()


def _watch(side: ComparedServer, model: str, seed: int) -> Stretch:
    async def some_time() -> None:
        await asyncio.sleep(WATCHED_S)

    config = streams_of(side, model, NUM_STREAMS, _NUM_STREAM_TOKENS, seed)
    return asyncio.run(watch_streams(config, side.pid, some_time))


def _until_answer_s(client: JobClient, job_id: str) -> float:
    """Seconds from the last step, as it was reported, to the model's first answer."""
    last_step, last_step_s = 0, time.monotonic()

    def has_succeeded() -> bool:
        nonlocal last_step, last_step_s
        if (step := client.last_step(job_id)) > last_step:
            last_step, last_step_s = step, time.monotonic()
        return bool(client.job(job_id)["status"] == "succeeded")

    client.wait(job_id, has_succeeded)
    client.ask(client.job(job_id)["fine_tuned_model"])
    return time.monotonic() - last_step_s


def _compared(name: str, unit: str, baseline: float, value: float, target: str, is_pass: bool) -> BenchResult:
    ratio = value / baseline
    return BenchResult(
        name=name, value=value, unit=unit, baseline=baseline, ratio=ratio, target=target, is_pass=is_pass
    )


def _below(name: str, value_s: float, most_s: float) -> BenchResult:
    return BenchResult(name=name, value=value_s, unit="s", target=f"below {most_s:g} s", is_pass=value_s < most_s)
