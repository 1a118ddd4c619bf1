"""`lorikeet bench train`: a training step of ours beside one of plain TRL, and beside its products alone.

Both sides train on the same examples in the same batches; in a round each takes a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from loadtest.bench.alternate import compare_pairs
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, paired
from loadtest.bench.servers import kept_logs
from loadtest.bench.train_objectives import bench_objectives
from loadtest.bench.trainers import BASE, BNB_BASE, Floor, MeasuredStep, TrainerProcess, prepared_base, workers

LEAST_RATIO: dict[str, float] = {"shared": 2.0, "own": 1.0}
LEAST_OF_BNB = 5.0
MOST_OF_FLOOR = 1.5
MOST_NATS = 0.1
"""Between the losses of the same step: bfloat16 and float32 themselves are this far apart after some steps."""

_TITLES = {"shared": "prompts that share a prefix", "own": "prompts of their own"}
_BATCH_SIZE = 16
_BNB_BATCH_SIZE = 4  # bitsandbytes takes its time
_WARM_UPS = 2

Data = Literal["shared", "own"]


@dataclass(frozen=True)
class Round:
    """A step of each side on one batch."""

    ours: MeasuredStep
    floor: Floor
    bf16: MeasuredStep
    float32: MeasuredStep

    @property
    def best(self) -> MeasuredStep:
        """The faster one of plain TRL's two."""
        return min(self.bf16, self.float32, key=lambda step: step.seconds)


def bench_train(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Prepare the base where it is missing, then measure both kinds of data, the other objectives, and 4-bit tensors.

    Raises:
        TargetError: A base could not be prepared, or a trainer ended. The logs are kept; the message says where.
    """
    results: list[BenchResult] = []
    with kept_logs() as logs:
        base = prepared_base(options, BASE, "nf4", "dequantized", logs)
        for data in LEAST_RATIO:
            results += _bench_data(options, base, data, logs)  # type: ignore[arg-type]  # keys are `Data`
        results += bench_objectives(options, base, logs)
        bnb = prepared_base(options, BNB_BASE, "nf4", "bitsandbytes", logs)
        results.append(_bench_bnb(options, base, bnb, logs))
    return tuple(results)


def measure_rounds(
    ours: TrainerProcess,
    bf16: TrainerProcess,
    float32: TrainerProcess,
    num_rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Round]:
    """Warm up with the first batches, which are the longest; the first side alternates by round."""
    rounds = []
    for number in range(_WARM_UPS + num_rounds):
        say(f"round {number + 1} of {_WARM_UPS + num_rounds}")
        sides: list[TrainerProcess] = [ours, bf16, float32]
        first = number % len(sides)
        steps = {id(side): side.step() for side in sides[first:] + sides[:first]}
        rounds.append(Round(steps[id(ours)], ours.floor(), steps[id(bf16)], steps[id(float32)]))
    return rounds


def results_of(data: Data, rounds: Sequence[Round], is_bf16: bool) -> tuple[BenchResult, ...]:
    """Speed, memory, floor and losses; the losses of the warm-ups count too."""
    title, timed = _TITLES[data], rounds[_WARM_UPS:]

    def speed(
        name: str, baseline: str, pairs: Sequence[tuple[MeasuredStep, MeasuredStep]], least: float | None
    ) -> BenchResult:
        values = [(first.tokens_per_s, second.tokens_per_s) for first, second in pairs]
        return paired(f"{title}: {name} (baseline: {baseline})", "tok/s", compare_pairs(values), least=least)

    floors = compare_pairs([(each.floor.seconds, each.ours.seconds) for each in timed])
    gflop = median(each.floor.gflop for each in timed)
    last = rounds[-1]
    twin = [each.bf16 if is_bf16 else each.float32 for each in rounds]
    return (
        speed("training", "plain TRL, the faster type", [(r.best, r.ours) for r in timed], LEAST_RATIO[data]),
        speed("training", "plain TRL in bfloat16", [(r.bf16, r.ours) for r in timed], None),
        speed("training", "plain TRL in float32", [(r.float32, r.ours) for r in timed], None),
        paired(
            f"{title}: a step (baseline: its products alone, {gflop:.0f} GFLOP at "
            f"{gflop / floors.baseline:.0f} GFLOP/s)",
            "s",
            floors,
            most=MOST_OF_FLOOR,
        ),
        paired(
            f"{title}: peak memory (baseline: plain TRL in bfloat16)",
            "MB",
            compare_pairs([(last.bf16.peak_bytes / 1e6, last.ours.peak_bytes / 1e6)]),
        ),
        loss_result(
            title,
            [each.ours for each in rounds],
            twin,
            [each.bf16 for each in rounds],
            [each.float32 for each in rounds],
        ),
    )


def loss_result(
    title: str,
    ours: Sequence[MeasuredStep],
    twin: Sequence[MeasuredStep],
    bf16: Sequence[MeasuredStep],
    float32: Sequence[MeasuredStep],
) -> BenchResult:
    """The largest difference of a step's loss from plain TRL's in the same type; baseline: TRL's own two types."""
    return BenchResult(
        name=f"{title}: largest difference of {len(ours)} losses from plain TRL in our type "
        "(baseline: TRL's own two types)",
        value=_largest_difference(ours, twin),
        unit="nats",
        baseline=_largest_difference(bf16, float32),
        target=f"at most {MOST_NATS:g} nats",
        is_pass=_largest_difference(ours, twin) <= MOST_NATS,
    )


def _largest_difference(first: Sequence[MeasuredStep], second: Sequence[MeasuredStep]) -> float:
    return max(abs(a.loss - b.loss) for a, b in zip(first, second, strict=True))


def _bench_data(options: BenchOptions, base: Path, data: Data, logs: Path) -> tuple[BenchResult, ...]:
    both = (("lorikeet", base), ("trl-bfloat16", base), ("trl-float32", base))
    with workers(options, both, data, logs, _BATCH_SIZE) as sides:
        ours, bf16, float32 = sides
        rounds = measure_rounds(ours, bf16, float32, options.rounds, options.say)
    return results_of(data, rounds, ours.is_bf16)


def _bench_bnb(options: BenchOptions, base: Path, bnb: Path, logs: Path) -> BenchResult:
    """Our way to train an NF4 base on a CPU, and bitsandbytes' own."""
    both = (("lorikeet", base), ("trl-bfloat16", bnb))
    with workers(options, both, "shared", logs, _BNB_BATCH_SIZE) as (ours, theirs):
        pairs = []
        for number in range(1 + options.rounds):
            options.say(f"NF4: round {number} of {options.rounds}")
            pairs.append((theirs.step().tokens_per_s, ours.step().tokens_per_s))
    title = f"NF4, {_BNB_BATCH_SIZE} examples a step: training (baseline: plain TRL on bitsandbytes' tensors)"
    return paired(title, "tok/s", compare_pairs(pairs[1:]), least=LEAST_OF_BNB)
