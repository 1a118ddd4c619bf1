import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from config.home import Home
from config.method import LoraMethod
from tests.tiny_llama import prepare_tiny_base, tiny_tokenizer, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.bench_examples import BatchShape, examples
from train.bench_worker import Product, flops_of, products_of, shape_of
from train.methods.lora import Lora
from train.objectives.answer_loss import shared_prefix_length

pytestmark = pytest.mark.slow

IGNORED = -100


def test_a_prefix_that_all_rows_share_counts_once() -> None:
    input_ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, IGNORED, 4], [IGNORED, IGNORED, 5, IGNORED]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    # The last shared token predicts an answer, and is computed for each row.
    assert shape_of(input_ids, labels, mask) == BatchShape(7, 6, 2)


def test_a_step_has_the_products_of_forward_and_backward(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_llama(tmp_path / "model"))
    adapted = get_peft_model(model, Lora().peft_config(LoraMethod(r=2, target_modules=("q_proj",)), model))
    products = products_of(adapted, BatchShape(num_tokens=20, num_distinct=10, num_answer_tokens=3))
    assert products[Product(10, 64, 64)] == 2 * 2  # two layers, forward and backward
    assert products[Product(3, 64, 259)] == 1
    lora = 2 * 6 * 2 * 10 * 64 * 2
    assert flops_of(products) == 4 * 2 * 10 * 64 * 64 + 2 * 2 * 3 * 64 * 259 + lora


@pytest.mark.parametrize(("data", "is_shared"), [("shared", True), ("own", False)])
def test_examples_share_a_prefix_or_have_their_own(data: str, is_shared: bool) -> None:
    rows = examples(tiny_tokenizer(), data)[:4]
    assert [row.input_ids for row in rows] == [row.input_ids for row in examples(tiny_tokenizer(), data)[:4]]
    length = min(map(len, rows))
    input_ids = torch.tensor([row.input_ids[:length] for row in rows])
    num_shared = shared_prefix_length(input_ids, torch.tensor([row.labels[:length] for row in rows]))
    assert (num_shared > 50) is is_shared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "objective"),
    [
        ("lorikeet", "text"),
        ("lorikeet", "dpo"),
        ("lorikeet", "grpo"),
        ("trl-float32", "dpo"),
        *(pytest.param("lorikeet", name, marks=pytest.mark.exhaustive) for name in ("orpo", "kto", "reward", "rloo")),
        *(
            pytest.param("trl-float32", name, marks=pytest.mark.exhaustive)
            for name in ("text", "orpo", "kto", "reward", "grpo", "rloo")
        ),
    ],
)
def test_a_worker_trains_every_objective(side: str, objective: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    words = [sys.executable, "-m", "train.bench_worker", side, str(home.bases / "tiny"), objective, "8"]
    done = subprocess.run(words, input="step\nstep\n", capture_output=True, text=True, check=True, timeout=120)
    ready, *steps = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert set(ready) == {"computes", "is_bf16"}
    assert [set(step) for step in steps] == [{"seconds", "num_tokens", "loss", "peak_bytes"}] * 2
    assert all((step["num_tokens"] > 0) is (objective == "text") for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "side", ["lorikeet", "trl-bfloat16", pytest.param("trl-float32", marks=pytest.mark.exhaustive)]
)
def test_a_worker_takes_steps_until_its_input_ends(side: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    words = [sys.executable, "-m", "train.bench_worker", side, str(home.bases / "tiny"), "shared", "4"]
    done = subprocess.run(words, input="step\nstep\nfloor\n", capture_output=True, text=True, check=True, timeout=120)
    ready, first, second, floor = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["is_bf16"] is (side != "trl-float32") or side == "lorikeet"
    assert set(first) == set(second) == {"seconds", "num_tokens", "loss", "peak_bytes"}
    assert set(floor) == {"seconds", "gflop"}
