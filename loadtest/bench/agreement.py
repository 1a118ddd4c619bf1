"""`lorikeet bench agreement`: the same workload by `vllm bench serve` and by our generator, interleaved, on one server.

Both send the same prompts at the same times (constant rate, then a closed loop), and both use their own clocks, HTTP
clients and arithmetic. What they report must agree.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from config.load import load_serve
from config.loadtest import (
    Arrival,
    ClosedArrival,
    ConstantArrival,
    FixedLength,
    LoadtestConfig,
    MixConfig,
    SyntheticPrompts,
)
from loadtest.bench.children import child
from loadtest.bench.cost import successful_run
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.server import running_server
from loadtest.errors import TargetError
from loadtest.load.workload import plan
from loadtest.report.bootstrap import median_interval
from loadtest.report.stats import LatencySummary, summarize

NUM_REQUESTS = 60
NUM_WORDS = 48
NUM_TOKENS = 32
TOLERANCE = 0.05
WORKLOADS: dict[str, Arrival] = {
    "open loop, 2 req/s": ConstantArrival(kind="constant", rate=2.0),
    "closed loop, 4 users": ClosedArrival(kind="closed", concurrency=4),
}
# What `vllm bench serve` runs. The `vllm` command itself fails where the CPU build is installed: it asks
# for the version of a distribution that has another name there.
_VLLM_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
Figures = Mapping[str, float]
"""By name: req/s, and latencies in ms."""


def bench_agreement(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Each figure as we report it, beside `vllm bench serve`'s (the baseline), as medians of the rounds.

    Raises:
        ServerError: Our own server did not become ready.
        TargetError: `vllm bench serve` failed, or a request did.
    """
    tokenizer = options.home.bases / load_serve(options.serve_file).base
    with _server(options) as (url, model), TemporaryDirectory(prefix="lorikeet-bench-") as folder:
        results: list[BenchResult] = []
        for name, arrival in WORKLOADS.items():
            config = _config(url, model, arrival)
            measured_by_us(config)  # caches and kernels are warm for both from here on
            rounds = [_round(config, tokenizer, Path(folder), number, options) for number in range(options.rounds)]
            results += _agreement(name, rounds)
    return tuple(results)


def measured_by_us(config: LoadtestConfig) -> Figures:
    """One run of ours.

    Raises:
        TargetError: A request failed.
    """
    summary = summarize(successful_run(config))
    latencies = summary.latencies
    figures = {"requests/s": summary.requests_per_s}
    for name, latency in (("TTFT", latencies.ttft), ("ITL", latencies.itl), ("TPOT", latencies.tpot)):
        figures |= _percentiles_ms(name, latency)
    return figures


def measured_by_vllm(config: LoadtestConfig, tokenizer: Path, folder: Path) -> Figures:
    """One run of `vllm bench serve`.

    Raises:
        TargetError: It failed; the message ends with its last words.
    """
    prompts, report = folder / "prompts.jsonl", folder / "vllm.json"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in _prompts(config)))
    command = [sys.executable, "-P", "-c", _VLLM_BENCH_SERVE, *_arguments(config, tokenizer, prompts, report)]
    log = folder / "vllm.log"
    with log.open("w") as output, child(command, output=output) as process:
        code = process.wait()
    if code or not report.exists():
        raise TargetError(f"`vllm bench serve` failed: {log.read_text(errors='replace')[-500:]}")
    fields = json.loads(report.read_text())
    report.unlink()
    if fields["completed"] < config.num_requests:
        raise TargetError(f"`vllm bench serve` completed {fields['completed']} of {config.num_requests} requests.")
    figures = {"requests/s": float(fields["request_throughput"])}
    for name in ("TTFT", "ITL", "TPOT"):
        figures |= {f"{name} p{q}": float(fields[f"p{q}_{name.lower()}_ms"]) for q in (50, 99)}
    return figures


def _arguments(config: LoadtestConfig, tokenizer: Path, prompts: Path, report: Path) -> list[str]:
    """Of `vllm bench serve`, for the same workload."""
    root = config.url.removesuffix("/v1")
    target = ["--backend", "openai-chat", "--base-url", root, "--endpoint", "/v1/chat/completions"]
    model = ["--model", config.mix.models[0], "--tokenizer", str(tokenizer)]
    dataset = ["--dataset-name", "custom", "--dataset-path", str(prompts), "--custom-output-len", "-1"]
    dataset += ["--skip-chat-template", "--disable-shuffle", "--num-prompts", str(config.num_requests)]
    sampling = ["--ignore-eos", "--temperature", "0"]
    output = ["--save-result", "--result-dir", str(report.parent), "--result-filename", report.name, "--disable-tqdm"]
    output += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99"]
    if isinstance(config.arrival, ClosedArrival):
        load = ["--request-rate", "inf", "--max-concurrency", str(config.arrival.concurrency)]
    else:
        assert isinstance(config.arrival, ConstantArrival)
        load = ["--request-rate", str(config.arrival.rate), "--burstiness", "inf"]
    return [*target, *model, *dataset, *sampling, *load, *output]


def _config(url: str, model: str, arrival: Arrival) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=(model,)),
        arrival=arrival,
        num_requests=NUM_REQUESTS,
        duration_s=600,
        prompts=SyntheticPrompts(num_words=FixedLength(value=NUM_WORDS)),
        max_tokens=FixedLength(value=NUM_TOKENS),
    )


def _prompts(config: LoadtestConfig) -> Iterator[dict[str, object]]:
    """The prompts of our own plan, as vLLM's `custom` data set has them."""
    for planned in islice(plan(config, Path()), config.num_requests):
        yield {"prompt": planned.prompt.messages[0].content, "output_tokens": planned.prompt.max_tokens}


def _round(
    config: LoadtestConfig, tokenizer: Path, folder: Path, number: int, options: BenchOptions
) -> tuple[Figures, Figures]:
    """Our figures and vLLM's; the first side alternates by round."""
    found: dict[str, Figures] = {}
    for name in ("ours", "vllm") if number % 2 else ("vllm", "ours"):
        time.sleep(options.pause_s)
        found[name] = measured_by_us(config) if name == "ours" else measured_by_vllm(config, tokenizer, folder)
    shown = ", ".join(f"{key} {value:.4g}/{found['vllm'][key]:.4g}" for key, value in found["ours"].items())
    options.say(f"{config.arrival.kind}, round {number + 1}: {shown}")
    return found["ours"], found["vllm"]


def _agreement(workload: str, rounds: list[tuple[Figures, Figures]]) -> Iterator[BenchResult]:
    for name in rounds[0][0]:
        ratios = [ours[name] / theirs[name] for ours, theirs in rounds]
        interval = median_interval(ratios, seed=13)
        yield BenchResult(
            name=f"{workload}: {name}",
            value=median(ours[name] for ours, _ in rounds),
            unit="req/s" if name == "requests/s" else "ms",
            baseline=median(theirs[name] for _, theirs in rounds),
            ratio=median(ratios),
            ratio_interval=(interval.low, interval.high),
            target=f"within {TOLERANCE:.0%}",
            is_pass=abs(median(ratios) - 1) <= TOLERANCE,
        )


def _percentiles_ms(name: str, latency: LatencySummary | None) -> dict[str, float]:
    assert latency is not None, f"{NUM_TOKENS} tokens have a {name}"
    return {f"{name} p50": 1000 * latency.p50_s, f"{name} p99": 1000 * latency.p99_s}


@contextmanager
def _server(options: BenchOptions) -> Iterator[tuple[str, str]]:
    """URL and model: what was given, else a server of our own and its base."""
    if options.url is not None:
        if not options.models:
            raise TargetError("With --url, name the model with --model.")
        yield options.url, options.models[0]
        return
    with TemporaryDirectory(prefix="lorikeet-bench-") as folder:
        log_file = Path(folder) / "serve.log"
        with running_server(options.serve_file, options.home.root, log_file) as server:
            yield f"{server.url}/v1", load_serve(options.serve_file).served_model_name
