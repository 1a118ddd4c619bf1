"""What LoRA costs: which comparisons are made, what they want, and the floor that bytes set."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from config.home import Home
from loadtest.bench.cost import ComparedServer, Cost, Load, cost_of, measure_cost
from loadtest.bench.floor import adapter_bytes, base_bytes, floor_results, read_bytes_per_s
from loadtest.bench.lora import ALONE, FEWER, PREFILL, STREAMS, Row, Stage, bench_lora, compare, stages_of, within
from loadtest.bench.options import BenchOptions
from loadtest.bench.synthetic import Delays, SyntheticServer, synthetic_server
from loadtest.errors import TargetError
from loadtest.load.workload import plan
from tests.peft_folders import write_peft_folder
from tests.runs import request, run_of

OURS, THEIRS = ComparedServer("ours", 1), ComparedServer("theirs", 2)
ADAPTERS = {f"a-{number}@1": Path(f"/store/{number}") for number in range(8)}
NAMES = tuple(ADAPTERS)
THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "0,1", "LD_PRELOAD": "/lib/libiomp5.so", "PATH": "/bin"}
OFF, STOCK, AS_A_USER = stages_of("base", ADAPTERS, THREADS)


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


class Figures:
    """Both servers' tokens per second and CPU time per token, whatever they are asked."""

    def __init__(self, ours: Cost, theirs: Cost) -> None:
        self._costs = {OURS: ours, THEIRS: theirs}
        self.asked: list[tuple[ComparedServer, tuple[str, ...], Load, int]] = []

    def __call__(self, side: ComparedServer, models: tuple[str, ...], load: Load, seed: int) -> Cost:
        self.asked.append((side, models, load, seed))
        return self._costs[side]


def stage(*rows: Row) -> Stage:
    return Stage("vLLM, LoRA off", {}, {}, rows)


def row(least: float | None = 0.92) -> Row:
    return Row("one adapter", ("a@1",), ("base",), STREAMS, least)


def targets(of: Stage) -> dict[str, float | None]:
    return {row.name: row.least for row in of.rows}


def test_each_comparison_wants_what_the_project_wants() -> None:
    assert targets(OFF) == {
        "base": None,
        "one adapter": 0.92,
        "base and 2 adapters mixed": 0.92,
        "8 adapters": 0.82,
        "base, 1 stream": None,
        "one adapter, 1 stream": 0.92,
        "prefill of 512 tokens, 4 adapters": 0.85,
    }
    assert targets(STOCK) == {"one adapter": 3.5, "base and 2 adapters mixed": 3.5, "8 adapters": 3.5}
    assert targets(AS_A_USER) == {"one adapter": 6.0}


def test_vllm_without_lora_is_asked_for_its_base_alone() -> None:
    assert OFF.adapters == {}
    assert {row.theirs for row in OFF.rows} == {("base",)}
    assert all(row.theirs == row.ours for row in (*STOCK.rows, *AS_A_USER.rows))


def test_only_the_last_vllm_chooses_its_own_threads() -> None:
    threads = ("VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")
    assert all(stage.environment[name] == THREADS[name] for stage in (OFF, STOCK) for name in threads)
    assert [name for name in threads if name in AS_A_USER.environment] == []
    assert AS_A_USER.environment["PATH"] == "/bin"
    assert [s for s in (OFF, STOCK, AS_A_USER) if "LORIKEET_ENGINE" in s.environment] == []


def test_streams_are_fair_to_every_model() -> None:
    asked = [request.model for request in plan(STREAMS.config("http://test/v1", NAMES, 1), Path())]
    assert [asked[:8], asked[8:16], len(asked)] == [list(NAMES), list(NAMES), 64]


def test_loads_are_what_the_figures_are_called() -> None:
    assert (STREAMS.num_streams, FEWER.num_streams, PREFILL.num_streams) == (16, 16, 4)
    assert (ALONE.num_streams, ALONE.num_tokens) == (1, 64)
    assert (PREFILL.num_tokens, PREFILL.counted) == (1, "prompt")


def test_a_row_tells_speed_and_cpu_time(options: BenchOptions) -> None:
    figures = Figures(ours=Cost(95.0, 4.0), theirs=Cost(100.0, 5.0))
    speed, cpu = compare(stage(row()), OURS, THEIRS, options, figures, 0)
    assert (speed.name, speed.unit) == ("one adapter (baseline: vLLM, LoRA off)", "tok/s")
    assert (speed.value, speed.baseline, speed.ratio, speed.is_pass) == (95.0, 100.0, 0.95, True)
    assert (speed.target, speed.ratio_interval) == ("ratio at least 0.92", (0.95, 0.95))
    assert (cpu.value, cpu.unit, cpu.ratio, cpu.is_pass) == (4.0, "ms", 0.8, None)


@pytest.mark.parametrize(("tokens_per_s", "least", "expected"), [(91, 0.92, False), (92, 0.92, True), (50, None, None)])
def test_a_target_is_of_the_ratio(
    options: BenchOptions, tokens_per_s: float, least: float | None, expected: bool | None
) -> None:
    figures = Figures(Cost(tokens_per_s, 1.0), Cost(100.0, 1.0))
    speed, _ = compare(stage(row(least)), OURS, THEIRS, options, figures, 0)
    assert speed.is_pass is expected


def test_both_are_warmed_up_by_one_batch_and_then_measured_by_turns(options: BenchOptions) -> None:
    figures = Figures(Cost(150.0, 1.0), Cost(150.0, 1.0))
    list(compare(stage(row()), OURS, THEIRS, options, figures, 0))
    assert [load.num_requests for _, _, load, _ in figures.asked] == [16, 16, *[64] * 6]
    assert [side.url for side, *_ in figures.asked[2:]] == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert {models for side, models, *_ in figures.asked if side is THEIRS} == {("base",)}


def test_a_slow_server_is_asked_for_less_and_the_other_for_as_much(options: BenchOptions) -> None:
    figures = Figures(Cost(100.0, 1.0), Cost(8.0, 1.0))
    list(compare(stage(row()), OURS, THEIRS, options, figures, 0))
    assert [load.num_requests for _, _, load, _ in figures.asked] == [16] * 8


@pytest.mark.parametrize(("tokens_per_s", "num_requests"), [(1, 16), (25.6, 16), (51.2, 32), (60, 32), (400, 64)])
def test_a_measurement_is_of_whole_batches(tokens_per_s: float, num_requests: int) -> None:
    assert within(20, STREAMS, tokens_per_s).num_requests == num_requests


def test_a_prefill_is_bounded_by_its_prompts() -> None:
    assert [within(20, PREFILL, speed).num_requests for speed in (86, 400, 1600)] == [4, 16, 32]


@pytest.mark.slow
def test_a_round_asks_both_the_same_and_no_prompt_comes_back(options: BenchOptions) -> None:
    figures = Figures(Cost(1.0, 1.0), Cost(1.0, 1.0))
    list(compare(stage(row(), row()), OURS, THEIRS, options, figures, 500))
    ours, theirs = ([seed for side, *_, seed in figures.asked if side is wanted] for wanted in (OURS, THEIRS))
    assert ours == theirs == [500, 501, 502, 503, 1500, 1501, 1502, 1503]


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.005, itl_s=0.001)) as server:
        yield server


def test_a_cost_is_tokens_over_the_run_and_cpu_time_over_tokens() -> None:
    result = run_of(request(0, num_tokens=30), request(1, num_tokens=10), duration_s=2.0)
    assert cost_of(STREAMS, result, cpu_s=0.5) == Cost(tokens_per_s=20.0, cpu_ms_per_token=12.5)
    assert cost_of(PREFILL, result, cpu_s=0.5) == Cost(tokens_per_s=20.0, cpu_ms_per_token=12.5)
    assert cost_of(PREFILL, run_of(request(0)), cpu_s=0.5) == Cost(tokens_per_s=2.0, cpu_ms_per_token=25.0)


@pytest.mark.slow
def test_a_cost_is_measured_on_a_real_process(server: SyntheticServer) -> None:
    side = ComparedServer(f"{server.url}/v1", os.getpid())
    cost = measure_cost(side, ("a", "b"), Load(num_streams=4, num_requests=40, num_tokens=10), 1)
    assert cost.tokens_per_s > 0
    assert cost.cpu_ms_per_token > 0


@pytest.mark.slow
def test_a_request_that_fails_fails_the_measurement(server: SyntheticServer) -> None:
    with pytest.raises(TargetError, match="'unknown' does not exist"):
        measure_cost(ComparedServer(f"{server.url}/v1", os.getpid()), ("unknown",), STREAMS, 1)


def test_the_floor_is_bytes_over_bandwidth() -> None:
    read, step, one, two, eight = floor_results(300_000_000, 10_000_000, 6e9, 2, 16)
    assert (read.name, read.value, read.unit) == ("floor: reading memory, 2 threads", 6.0, "GB/s")
    assert (step.value, step.unit) == (50.0, "ms")
    assert (one.baseline, one.value) == pytest.approx((320.0, 16 / 0.310 * 6))
    ratios = (one.ratio, two.ratio, eight.ratio)
    assert ratios == pytest.approx((300 / 310, 300 / 320, 300 / 380))


def test_bytes_are_those_of_the_engine_in_bfloat16(tmp_path: Path) -> None:
    folder = write_peft_folder(tmp_path / "adapter")
    assert adapter_bytes(folder) == 4 * (8 * 2 + 2 * 8) * 2
    for number in (1, 2):
        save_file({"w": torch.zeros(100, dtype=torch.bfloat16)}, tmp_path / f"model-{number}.safetensors")
    assert base_bytes(tmp_path) == sum(path.stat().st_size for path in tmp_path.glob("model-*"))


def test_reading_memory_leaves_the_threads_of_torch_alone() -> None:
    before = torch.get_num_threads()
    assert read_bytes_per_s(1, 1 << 22) > 1e8
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_server_of_the_users_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="starts its servers itself"):
        bench_lora(BenchOptions(Home(tmp_path), url="http://test/v1"))
