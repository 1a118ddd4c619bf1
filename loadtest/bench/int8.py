"""`lorikeet bench int8`: the base rounded to int8 (`cpu_base: int8`) beside the base as trained on, with its adapters.

Two servers of ours, alternately: how fast, and how many held-out questions each adapter answers rightly.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from openai import AsyncOpenAI

from adapters.bases import read_base
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.store.store import AdapterStore
from config.errors import DatasetError
from config.home import Home
from loadtest.bench.cost import ComparedServer, measure_cost
from loadtest.bench.lora import ALONE, PREFILL, STREAMS, Row, Stage, compare
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.servers import base_folder, kept_logs, made_folder, our_server, same_threads, serve_config
from loadtest.errors import TargetError
from loadtest.evaluate import EvaluationError, evaluate_live
from quality.intervals import paired_difference
from quality.scorers import is_exact_match

LEAST_DIFFERENCE = -0.05
"""Of the shares answered rightly: the margin by which a canary may be worse, too (`quality.margin`)."""

_BASELINE = "the base in bf16"


@dataclass(frozen=True)
class Answered:
    """Held-out questions of one adapter; for each whether it was answered rightly in bf16, and in int8."""

    adapter: str
    pairs: Sequence[tuple[bool, bool]]


def bench_int8(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Serve the state folder's own adapters twice; those whose data sets are there are also examined.

    Raises:
        AdapterError: There is no such adapter.
        TargetError: A server did not become ready, or a request failed. The logs are kept; the message says where.
    """
    rounded, plain = (serve_config(options, cpu_base=kind) for kind in ("int8", "bfloat16"))
    names = _served_names(AdapterStore(options.home.adapters), options.adapter, base_folder(options, plain))
    environment = same_threads(options)
    results: list[BenchResult] = []
    with (
        kept_logs() as folder,
        our_server(rounded, options.home, made_folder(folder / "int8"), environment) as int8,
        our_server(plain, options.home, made_folder(folder / "bf16"), environment) as bf16,
    ):
        sides = ComparedServer(f"{int8.url}/v1", int8.pid), ComparedServer(f"{bf16.url}/v1", bf16.pid)
        stage = stage_of(rounded.served_model_name, names)
        results += compare(stage, *sides, options, measure_cost, 0)
        for name in names:
            if (options.home.datasets / name).is_dir():
                options.say(f"held-out questions of {name}")
                results.append(share_result(_examine(options.home, name, sides)))
    return tuple(results)


def stage_of(base: str, names: tuple[str, ...]) -> Stage:
    """The same models on both sides."""

    def rows() -> Iterator[Row]:
        for title, models, load in (
            ("base", (base,), STREAMS),
            (names[0], names[:1], STREAMS),
            (f"base and {', '.join(names)} mixed", (base, *names), STREAMS),
            ("base, 1 stream", (base,), ALONE),
            (f"{names[0]}, 1 stream", names[:1], ALONE),
            (f"prefill of 512 tokens, {', '.join(names)}", names, PREFILL),
        ):
            yield Row(title, models, models, load)

    return Stage(_BASELINE, {}, {}, tuple(rows()))


def share_result(answered: Answered) -> BenchResult:
    """Shares answered rightly, and whether the difference, with its 95% interval, is within the margin."""
    pairs = Counter(answered.pairs)
    low, high = paired_difference(pairs[True, False], pairs[False, True], len(answered.pairs))
    bf16, int8 = (fmean(side) for side in zip(*answered.pairs, strict=True))
    return BenchResult(
        name=f"{answered.adapter}: {len(answered.pairs)} held-out questions answered rightly (baseline: {_BASELINE}); "
        f"difference {int8 - bf16:+.3f}, {low:+.3f} to {high:+.3f}",
        value=int8,
        unit="share",
        baseline=bf16,
        target=f"difference surely above {LEAST_DIFFERENCE:g}",
        is_pass=low > LEAST_DIFFERENCE,
    )


def _served_names(store: AdapterStore, first: str, base: Path) -> tuple[str, ...]:
    """The adapters that a client of this base can ask for by name.

    Raises:
        AdapterError: There is no `first`.
    """
    store.resolve(first)
    digest = read_base(base).digest
    stable = {name: store.aliases(name).get(DEFAULT_ALIAS) for name in store.names()}
    served = [
        name
        for name, version in stable.items()
        if version is not None and store.manifest(Target(name, version)).base.digest == digest
    ]
    return first, *(name for name in served if name != first)


def _examine(home: Home, name: str, sides: tuple[ComparedServer, ComparedServer]) -> Answered:
    rounded, plain = (asyncio.run(_is_right(home.datasets / name, name, side.url)) for side in sides)
    return Answered(name, tuple(zip(plain, rounded, strict=True)))


async def _is_right(dataset: Path, name: str, url: str) -> list[bool]:
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=600, max_retries=0) as client:
        try:
            score = await evaluate_live(client, dataset, name)
        except (DatasetError, EvaluationError) as error:
            raise TargetError(str(error)) from error
    return [is_exact_match(answer.text, answer.expected) for answer in score.answers]
