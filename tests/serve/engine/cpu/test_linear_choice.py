"""Which product serves a shape of weights: the choice from times, and what is timed."""

from collections.abc import Callable

import pytest
from torch import Tensor

from serve.engine.cpu.linear_choice import ROWS, STOCK, UP_TO_ROWS, choose, measure, num_samples, sample_outputs

NUM_CLASSES = len(ROWS)


def timings(*gains: float) -> list[dict[str, float]]:
    """vLLM takes a second; `fast` takes less where its gain is above 1, and `slow` always takes ten."""
    return [{STOCK: 1.0, "slow": 10.0, "fast": 1 / gain} for gain in gains]


@pytest.mark.parametrize(
    ("gains", "is_stock"),
    [
        ((1.0, 1.02, 1.04), True),
        ((1.0, 1.02, 1.06), False),
        ((0.98, 1.0, 1.8), False),
        ((0.9, 1.0, 1.8), True),
        ((1.4, 1.2, 0.3), True),
    ],
    ids=["as fast", "faster", "faster without loss", "slower with few rows", "slower with many rows"],
)
def test_a_kernel_must_be_clearly_faster_and_never_slower(gains: tuple[float, ...], is_stock: bool) -> None:
    choice = choose(timings(*gains))
    assert choice.is_stock is is_stock
    assert choice.gains == pytest.approx(gains)
    assert choice.kernels == ("fast", "fast", "fast")


def test_each_number_of_rows_has_its_own_kernel() -> None:
    choice = choose([{STOCK: 1.0, "few": 0.5, "many": 0.9}, {STOCK: 1.0, "few": 0.9, "many": 0.5}])
    assert choice.kernels == ("few", "many")


def test_a_choice_reads_as_one_line() -> None:
    assert str(choose(timings(1.0, 1.5, 1.5, 1.75))) == (
        "1 row fast 1.00x, 8 rows fast 1.50x, 32 rows fast 1.50x, 256 rows fast 1.75x"
    )
    assert str(choose(timings(1.0, 0.5, 0.25, 0.25))) == (
        "1 row fast 1.00x, 8 rows fast 0.50x, 32 rows fast 0.25x, 256 rows fast 0.25x, left to vLLM"
    )


def test_what_is_measured_holds_for_numbers_of_rows_around_it() -> None:
    assert all(rows <= up_to for rows, up_to in zip(ROWS, UP_TO_ROWS, strict=True))
    assert all(up_to < rows for up_to, rows in zip(UP_TO_ROWS, ROWS[1:], strict=False))


class Clock:
    """It goes on when something is multiplied, and only then."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def product(self, seconds: Callable[[int, int], float], calls: list[tuple[int, int]]) -> Callable[..., None]:
        def multiply(x: Tensor, sample: int) -> None:
            calls.append((len(x), sample))
            self.now_s += seconds(len(x), len(calls))

        return multiply


def test_the_shortest_time_counts() -> None:
    clock = Clock()
    noisy: list[tuple[int, int]] = []
    products = {
        STOCK: clock.product(lambda rows, _: 0.002 * rows, []),
        "fast": clock.product(lambda rows, call: 0.001 * rows if call % 3 == 0 else 0.1 * rows, noisy),
    }
    measured = measure(products, 16, 4, clock)
    assert [seconds[STOCK] for seconds in measured] == pytest.approx([0.002 * rows for rows in ROWS])
    assert [seconds["fast"] for seconds in measured] == pytest.approx([0.001 * rows for rows in ROWS])


def test_products_take_turns_on_different_samples() -> None:
    clock = Clock()
    first: list[tuple[int, int]] = []
    second: list[tuple[int, int]] = []
    products = {STOCK: clock.product(lambda *_: 0.001, first), "fast": clock.product(lambda *_: 0.001, second)}
    measure(products, 16, 6, clock)
    assert len(first) == len(second)
    assert {sample for _, sample in first} == {sample for _, sample in second} == set(range(6))
    timed = [pair for pair in zip(first, second, strict=True) if pair[0][1] != pair[1][1]]
    assert len(timed) >= len(first) - 4 * NUM_CLASSES  # each warms up on the first one


def test_what_is_hopeless_is_not_measured_for_long() -> None:
    clock = Clock()
    calls: list[tuple[int, int]] = []
    products = {STOCK: clock.product(lambda *_: 1e-4, []), "slow": clock.product(lambda *_: 1e-3, calls)}
    measure(products, 16, 2, clock)
    assert len(calls) == NUM_CLASSES * 4 * (1 + 3)  # in four passes, each with one to warm up


def test_a_kernel_that_other_work_has_slowed_is_measured_again() -> None:
    clock = Clock()
    calls: list[tuple[int, int]] = []
    num_disturbed = NUM_CLASSES * 2 * (1 + 3)

    def disturbed(_: int, call: int) -> float:
        return 0.09 if call <= num_disturbed else 0.01

    products = {STOCK: clock.product(lambda *_: 0.02, []), "fast": clock.product(disturbed, calls)}
    assert [seconds["fast"] for seconds in measure(products, 16, 2, clock)] == pytest.approx([0.01] * NUM_CLASSES)


@pytest.mark.parametrize("seconds", [1e-4, 0.02, 1.0])
def test_measuring_ends(seconds: float) -> None:
    clock = Clock()
    calls: list[tuple[int, int]] = []
    measure({STOCK: clock.product(lambda *_: seconds, calls)}, 16, 2, clock)
    assert clock.now_s < NUM_CLASSES * max(0.12, 16.5 * seconds)
    assert {rows for rows, _ in calls} == set(ROWS)


@pytest.mark.parametrize(
    ("outputs", "inputs", "num_threads", "part"),
    [
        (576, 576, 2, 576),
        (49_152, 576, 1, 1808),
        (49_152, 576, 2, 1808),
        (49_152, 576, 4, 3632),
        (28_672, 8192, 2, 256),
        (28_672, 8192, 64, 8192),
        (7, 100_000, 2, 7),
    ],
)
def test_a_part_of_a_large_layer_is_measured(outputs: int, inputs: int, num_threads: int, part: int) -> None:
    assert sample_outputs(outputs, inputs, num_threads) == part
    assert num_samples(2 * part * inputs, num_threads) >= 2


def test_a_small_layer_is_measured_on_more_than_the_caches_of_its_cores_hold() -> None:
    size = 2 * 576 * 576
    assert num_samples(size, 2) * size > 15 << 20
    assert num_samples(size, 1000) * size <= 64 << 20
