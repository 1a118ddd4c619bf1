"""Synthetic runs, for tests of what is read from them."""

import random

from loadtest.load.records import ErrorKind, GeneratorFigures, RequestRecord, RunResult

GENERATOR = GeneratorFigures(lag_p50_s=0.0002, lag_p99_s=0.001, cpu_share=0.05, is_bottleneck=False)


def request(
    index: int = 0,
    *,
    at_s: float = 0.0,
    ttft_s: float = 0.1,
    itl_s: float = 0.02,
    num_tokens: int = 11,
    model: str = "medical",
    is_cold: bool | None = False,
    error: ErrorKind | None = None,
) -> RequestRecord:
    """A request whose pieces of text come `itl_s` apart; a failed one got no text."""
    times = tuple(at_s + ttft_s + itl_s * n for n in range(num_tokens)) if error is None else ()
    return RequestRecord(
        index=index,
        model=model,
        served_by=f"{model}@1" if error is None else None,
        is_cold=is_cold,
        intended_s=at_s,
        sent_s=at_s,
        chunk_times_s=times,
        ended_s=times[-1] if times else at_s + 0.5,
        num_prompt_tokens=20,
        num_completion_tokens=num_tokens if error is None else 0,
        status=200 if error is None else 503,
        error=error,
    )


def run_of(*records: RequestRecord, duration_s: float = 10.0, is_bottleneck: bool = False) -> RunResult:
    return RunResult(
        name="test",
        url="http://127.0.0.1:8000/v1",
        started_at="2026-11-21T23:00:00+00:00",
        machine="two cores",
        workload={"rate_per_s": 10},
        seed=1,
        duration_s=duration_s,
        generator=GENERATOR.model_copy(update={"is_bottleneck": is_bottleneck}),
        records=records,
    )


def random_run(
    *, num_requests: int = 300, num_models: int = 3, slowdown: float = 1.0, error_share: float = 0.02, seed: int = 1
) -> RunResult:
    """Poisson arrivals at 10 a second, gamma TTFTs of 0.2 s in the mean; each model's first requests are cold."""
    rng, now_s, seen = random.Random(seed), 0.0, dict[str, int]()
    records = []
    for index in range(num_requests):
        now_s += rng.expovariate(10)
        model = f"adapter-{min(int(rng.paretovariate(0.7)) - 1, num_models - 1):03d}"
        seen[model] = seen.get(model, 0) + 1
        is_cold = seen[model] <= 2
        ttft_s = slowdown * (rng.gammavariate(4, 0.05) + 1.2 * is_cold)
        error: ErrorKind | None = rng.choice(("timeout", "throttled")) if rng.random() < error_share else None
        itl_s = slowdown * rng.gammavariate(9, 0.003)
        num_tokens = rng.randint(8, 40)
        records.append(
            request(index, at_s=now_s, ttft_s=ttft_s, itl_s=itl_s, num_tokens=num_tokens, model=model,
                    is_cold=is_cold, error=error)
        )  # fmt: skip
    return run_of(*records, duration_s=max(record.ended_s for record in records))
