"""A fine-tuning job in `lorikeet bench jobs`: what streams feel of it, and how soon it runs and its model answers."""

import asyncio
import json
import time
from typing import Any

from loadtest.bench.cost import ComparedServer
from loadtest.bench.jobs_api import JobsApi
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, compared
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


class JobClient(JobsApi):
    """Fine-tuning jobs of one server."""

    def submit(self, base: str, rows: bytes) -> str:
        """Path of a job with few settings: one epoch, in batches of eight."""
        file_id = self.upload(rows, "fine-tune")
        settings = {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}
        method = {"type": "supervised", "supervised": settings}
        body = {"model": base, "training_file": file_id, "suffix": "bench", "method": method}
        return f"/fine_tuning/jobs/{self.post('/fine_tuning/jobs', body)['id']}"

    def last_step(self, job: str) -> int:
        """Number of the last step that was reported; 0 before the first."""
        events = self.get(f"{job}/events")["data"]
        return max((event["data"]["step"] for event in events if event["type"] == "metrics"), default=0)

    def ask(self, model: str) -> None:
        """Send one request to a model."""
        body = {"model": model, "messages": [{"role": "user", "content": "Which number?"}], "max_tokens": 1}
        self.post("/chat/completions", body)


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
    job = client.submit(base, training_rows())
    client.wait(job, lambda found: found["status"] == "running")
    until_running_s = time.monotonic() - submitted_s
    client.wait(job, lambda _: client.last_step(job) > 0)
    beside = _watch(side, model, seed=2)
    if client.get(job)["status"] == "succeeded":
        raise TargetError("The job ended while it was watched. Raise NUM_ROWS in loadtest/bench/jobs_training.py.")
    until_answer_s = _until_answer_s(client, job)
    itl, tokens = beside.itl_p99_s / without.itl_p99_s, beside.tokens_per_s / without.tokens_per_s
    options.say(f"beside a training: p99 of ITL {itl:.2f} times, {tokens:.2f} of the tokens/s")
    streams = f"{NUM_STREAMS} streams while a job trains (baseline: without)"
    return (
        compared(f"p99 ITL of {streams}", "ms", 1000 * without.itl_p99_s, 1000 * beside.itl_p99_s, most=MOST_ITL_P99),
        compared(
            f"throughput of {streams}", "tok/s", without.tokens_per_s, beside.tokens_per_s, least=LEAST_THROUGHPUT
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


def _until_answer_s(client: JobClient, job: str) -> float:
    """Seconds from the last step, as it was reported, to the model's first answer."""
    last_step, last_step_s = 0, time.monotonic()

    def has_succeeded(found: dict[str, Any]) -> bool:
        nonlocal last_step, last_step_s
        if (step := client.last_step(job)) > last_step:
            last_step, last_step_s = step, time.monotonic()
        return bool(found["status"] == "succeeded")

    client.ask(client.wait(job, has_succeeded)["fine_tuned_model"])
    return time.monotonic() - last_step_s


def _below(name: str, value_s: float, most_s: float) -> BenchResult:
    return BenchResult(name=name, value=value_s, unit="s", target=f"below {most_s:g} s", is_pass=value_s < most_s)
