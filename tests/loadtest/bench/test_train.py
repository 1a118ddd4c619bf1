import sys
from dataclasses import replace
from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench import train
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.train import Round, measure_rounds, results_of
from loadtest.bench.train_objectives import StepPair, objective_results
from loadtest.bench.trainers import Floor, MeasuredStep, WorkerSide, prepared_base
from loadtest.errors import TargetError

STEP = MeasuredStep(seconds=1.0, num_tokens=1000, loss=2.0, peak_bytes=10**9)


class FakeSide:
    def __init__(self, name: str, asked: list[str]) -> None:
        self._name, self._asked = name, asked

    def step(self) -> MeasuredStep:
        self._asked.append(self._name)
        return STEP

    def floor(self) -> Floor:
        self._asked.append("floor")
        return Floor(0.5, 100.0)


def a_round(ours_s: float = 0.5, bf16_s: float = 2.0, float32_s: float = 1.0, floor_s: float = 0.4) -> Round:
    ours, bf16, float32 = (replace(STEP, seconds=s) for s in (ours_s, bf16_s, float32_s))
    return Round(ours, Floor(floor_s, 100.0), bf16, float32)


def results(data: train.Data, *rounds: Round) -> dict[str, BenchResult]:
    found = results_of(data, [a_round(), a_round(), *rounds], is_bf16=True)
    return {result.name.partition(": ")[2]: result for result in found}


def row(found: dict[str, BenchResult], start: str) -> BenchResult:
    return next(result for name, result in found.items() if name.startswith(start))


def test_whoever_goes_first_changes_from_round_to_round() -> None:
    asked: list[str] = []
    ours, bf16, float32 = (FakeSide(name, asked) for name in ("ours", "bf16", "float32"))
    rounds = measure_rounds(ours, bf16, float32, num_rounds=1)
    assert len(rounds) == 3
    assert asked[0:4] == ["ours", "bf16", "float32", "floor"]
    assert asked[4:8] == ["bf16", "float32", "ours", "floor"]


@pytest.mark.slow
def test_training_is_held_against_the_faster_of_both_types() -> None:
    speed = row(results("shared", a_round(ours_s=0.5, bf16_s=2.0, float32_s=1.0)), "training (baseline: plain TRL, the")
    assert (speed.value, speed.baseline, speed.ratio, speed.is_pass) == (2000, 1000, 2.0, True)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "is_pass"), [("shared", False), ("own", True)])
def test_a_shared_prefix_must_be_twice_as_fast(data: train.Data, is_pass: bool) -> None:
    assert row(results(data, a_round(ours_s=0.6)), "training (baseline: plain TRL, the").is_pass is is_pass


@pytest.mark.parametrize(("floor_s", "is_pass"), [(0.4, True), (0.3, False)])
def test_a_step_must_be_near_its_products(floor_s: float, is_pass: bool) -> None:
    found = row(results("own", a_round(ours_s=0.5, floor_s=floor_s)), "a step")
    assert found.is_pass is is_pass
    assert "100 GFLOP" in found.name


@pytest.mark.slow
def test_warm_ups_are_not_timed() -> None:
    slow = a_round(ours_s=100.0)
    found = results_of("own", [slow, slow, a_round()], is_bf16=True)
    assert found[0].value == 2000


@pytest.mark.slow
@pytest.mark.parametrize(("is_bf16", "value", "is_pass"), [(True, 0.25, False), (False, 0.0625, True)])
def test_losses_are_compared_in_our_type(is_bf16: bool, value: float, is_pass: bool) -> None:
    first = a_round()
    odd = replace(first, bf16=replace(STEP, loss=2.25), float32=replace(STEP, loss=2.0625))
    found = results_of("own", [odd, first, first], is_bf16)[-1]
    assert (found.value, found.baseline, found.is_pass) == (value, 0.1875, is_pass)


def test_a_trainer_that_ends_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        WorkerSide("trl-float32", tmp_path, "own", 4, tmp_path / "w.log", {}) as side,
        pytest.raises(TargetError, match=r"trl-float32, own\) ended without an answer"),
    ):
        side.step()


def test_a_trainer_is_asked_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, floor = tmp_path / "trainer", '{"seconds": 0.5, "gflop": 100.0}'
    ready = '{"computes": "bfloat16", "is_bf16": true}'
    loop = f"while read what; do echo \"$what\"; echo '{floor}'; done"
    trainer.write_text(f"#!/bin/sh\necho '{ready}'\n{loop}\ntouch {tmp_path}/ended\n")
    trainer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(trainer))
    with WorkerSide("trl-bfloat16", tmp_path, "own", 4, tmp_path / "w.log", {}) as side:
        assert side.wait_until_ready() == "trl-bfloat16, own: bfloat16"
        assert [side.floor(), side.floor()] == [Floor(0.5, 100.0)] * 2
    assert (tmp_path / "ended").exists()


def test_a_base_that_is_there_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    options = BenchOptions(Home(tmp_path))
    (options.home.bases / "there").mkdir(parents=True)
    assert prepared_base(options, "there", "nf4", "dequantized", tmp_path) == options.home.bases / "there"
    with pytest.raises(TargetError, match="'missing' could not be prepared"):
        prepared_base(options, "missing", "nf4", "dequantized", tmp_path)


def test_an_objective_is_held_against_plain_trl_by_step() -> None:
    ours, plain = replace(STEP, seconds=1.0, peak_bytes=10**9), replace(STEP, seconds=4.0, peak_bytes=2 * 10**9)
    speed, memory = objective_results("dpo", [StepPair(plain, ours)] * 2)
    assert (speed.name, speed.unit) == ("dpo: a step (baseline: plain TRL)", "s")
    assert (speed.value, speed.baseline, speed.ratio, speed.is_pass) == (1.0, 4.0, 0.25, True)
    assert (memory.value, memory.baseline, memory.ratio, memory.is_pass) == (1000, 2000, 0.5, None)


def test_text_is_held_against_plain_trl_by_token() -> None:
    packed, padded = replace(STEP, seconds=1.0, num_tokens=500), replace(STEP, seconds=2.0, num_tokens=250)
    speed, _ = objective_results("text", [StepPair(padded, packed)])
    assert (speed.value, speed.baseline, speed.ratio) == (2.0, 8.0, 0.25)


def test_an_objective_that_became_slower_is_told() -> None:
    speed, _ = objective_results("kto", [StepPair(replace(STEP, seconds=1.0), replace(STEP, seconds=1.3))])
    assert speed.is_pass is False
