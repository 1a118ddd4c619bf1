"""Rows of `lorikeet bench train` for the objectives other than `sft`: a step of ours beside one of plain TRL.

Both compute in the type that ours has measured to be the faster one. `grpo` and `rloo` sample answers, so their steps
have the same prompts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.alternate import compare_pairs
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.trainers import MeasuredStep, workers

OBJECTIVES = ("text", "dpo", "orpo", "kto", "reward", "grpo", "rloo")
MOST_OF_PLAIN = 1.1

_BATCH_SIZE = 8
_WARM_UPS = 1


@dataclass(frozen=True)
class StepPair:
    """A step of each side on the same rows."""

    plain: MeasuredStep
    ours: MeasuredStep


def bench_objectives(options: BenchOptions, base: Path, logs: Path) -> tuple[BenchResult, ...]:
    """Raises TargetError where a trainer ended."""
    return tuple(result for name in OBJECTIVES for result in _bench_objective(options, base, name, logs))


def objective_results(name: str, pairs: Sequence[StepPair]) -> tuple[BenchResult, BenchResult]:
    """Seconds of a step, or of `text`, whose rows differ, of 1000 tokens; and peak memory."""
    is_text = name == "text"
    seconds = [(_seconds(pair.plain, is_text), _seconds(pair.ours, is_text)) for pair in pairs]
    what, last = "1000 tokens" if is_text else "a step", pairs[-1]
    memory = compare_pairs([(last.plain.peak_bytes / 1e6, last.ours.peak_bytes / 1e6)])
    return (
        paired(f"{name}: {what} (baseline: plain TRL)", "s", compare_pairs(seconds), most=MOST_OF_PLAIN),
        paired(f"{name}: peak memory (baseline: plain TRL)", "MB", memory),
    )


def _seconds(step: MeasuredStep, is_text: bool) -> float:
    return 1000 * step.seconds / step.num_tokens if is_text else step.seconds


def _bench_objective(options: BenchOptions, base: Path, name: str, logs: Path) -> tuple[BenchResult, ...]:
    with workers(options, (("lorikeet", base),), name, logs, _BATCH_SIZE) as (ours,):
        kind = "trl-bfloat16" if ours.is_bf16 else "trl-float32"
        with workers(options, ((kind, base),), name, logs, _BATCH_SIZE) as (plain,):
            pairs = []
            for number in range(_WARM_UPS + options.rounds):
                options.say(f"{name}: round {number} of {options.rounds}")
                pairs.append(StepPair(plain.step(), ours.step()))
    return objective_results(name, pairs[_WARM_UPS:])
