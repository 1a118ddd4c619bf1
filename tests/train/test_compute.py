import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from adapters.store.manifest import ComputeRecord, TrainingRecord
from config.method import LoraMethod
from tests.clock import FakeClock
from tests.tiny_llama import write_tiny_llama
from train.base.quantize import load_causal_lm
from train.compute import (
    Candidate,
    Part,
    Shape,
    choose,
    compute_in,
    in_float32,
    measure_inference,
    measure_training,
    set_precision,
    time_each,
)
from train.methods.lora import Lora

BF16, FLOAT32, FEWER = Candidate("bfloat16", 2), Candidate("float32", 2), Candidate("float32", 1)


class RunningClock(FakeClock):
    """Stands still but for what runs."""

    def runs(self, *durations_s: float) -> Part:
        """Takes so long, one after the other, then always the last."""
        rest = list(durations_s)

        def run() -> None:
            self.now_s += rest.pop(0) if len(rest) > 1 else rest[0]

        return Part(run)


def ticking() -> Iterator[float]:
    """Any two moments are half a second apart: all candidates are as fast."""
    return count(0.0, 0.5)


@pytest.fixture(autouse=True)
def own_num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_causal_lm(write_tiny_llama(tmp_path_factory.mktemp("compute") / "model"))


def lora(model: PreTrainedModel) -> LoraConfig:
    return Lora().peft_config(LoraMethod(r=2), model)


def test_the_fastest_candidate_is_chosen() -> None:
    assert choose({BF16: 16.0, FLOAT32: 3.5, FEWER: 5.0}) == FLOAT32


def test_noise_does_not_change_the_choice() -> None:
    assert choose({BF16: 1.0, FLOAT32: 0.98}) == BF16


def test_the_fastest_run_after_a_warm_up_counts() -> None:
    clock = RunningClock(0.0)
    work = {BF16: [clock.runs(0.25, 3.0, 2.0, 4.0)], FLOAT32: [clock.runs(0.25, 5.0)]}
    assert time_each(work, budget_s=10.0, clock=clock) == {BF16: 2.0, FLOAT32: 5.0}


def test_a_hopeless_candidate_is_not_run_again() -> None:
    clock = RunningClock(0.0)
    work = {BF16: [clock.runs(40.0, 50.0)], FLOAT32: [clock.runs(10.0, 9.0)], FEWER: [clock.runs(30.0, 8.0)]}
    assert time_each(work, budget_s=1.0, clock=clock) == {BF16: 40.0, FLOAT32: 9.0, FEWER: 8.0}
    assert clock.now_s == 40 + 10 + 30 + 9 + 8


def test_a_slow_first_run_within_the_budget_is_not_hopeless() -> None:
    clock = RunningClock(0.0)
    work = {BF16: [clock.runs(0.5, 0.01)], FLOAT32: [clock.runs(0.02, 0.02)]}
    assert time_each(work, budget_s=1.0, clock=clock) == pytest.approx({BF16: 0.01, FLOAT32: 0.02})


def test_a_part_counts_as_often_as_the_work_holds_it() -> None:
    clock = RunningClock(0.0)
    prefill, step = clock.runs(3.0), clock.runs(0.5)
    assert time_each({BF16: [Part(prefill.run, 2), Part(step.run, 20)]}, 0.0, clock) == {BF16: 16.0}


@pytest.mark.slow
def test_measuring_leaves_model_and_threads_alone(model: PreTrainedModel) -> None:
    torch.set_num_threads(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compute = measure_training(model, lora(model), Shape(2, 8), clock=ticking().__next__)
    assert compute.precision == "bfloat16"
    assert set(compute.layer_ms) >= {f"{p}, 2 threads" for p in ("bfloat16", "float32", "mixed")}
    assert torch.get_num_threads() == 2
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_generation_is_measured_by_prefill_and_steps(model: PreTrainedModel) -> None:
    compute = measure_inference(model, Shape(3, 8), 10, clock=ticking().__next__)
    # Half a second for the prefill, and for each of ten steps.
    assert set(compute.layer_ms.values()) == {5500.0}


def test_mixed_has_products_in_bfloat16_and_the_rest_in_float32(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_llama(tmp_path / "model"))
    set_precision(model, "mixed")
    dtypes = {name.rsplit(".", 2)[-2]: parameter.dtype for name, parameter in model.named_parameters()}
    assert (dtypes["q_proj"], dtypes["down_proj"]) == (torch.bfloat16, torch.bfloat16)
    assert (dtypes["embed_tokens"], dtypes["input_layernorm"]) == (torch.float32, torch.float32)


def test_a_model_computes_as_chosen(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_llama(tmp_path / "model"))
    compute_in(model, ComputeRecord(precision="float32", num_threads=1))
    assert torch.get_num_threads() == 1
    assert model(torch.tensor([[1, 2]])).logits.dtype == torch.float32


def test_a_bfloat16_model_computes_in_float32_for_a_while(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_llama(tmp_path / "model"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = torch.tensor([[1, 2]])
    exact = load_causal_lm(tmp_path / "model", dtype=torch.float32)(ids).logits
    with in_float32(model):
        assert torch.equal(model(ids).logits, exact)
    assert model(ids).logits.dtype == torch.bfloat16
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_manifest_of_an_older_version_has_no_choice() -> None:
    record = {"arguments": {}, "metrics": {}, "duration_s": 1.0, "device": "cpu", "libraries": {}}
    assert TrainingRecord.model_validate_json(json.dumps(record)).compute is None
