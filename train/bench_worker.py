"""One side of `lorikeet bench train`: a trainer that runs one step per command and writes its timing as JSON.

`python -m train.bench_worker SIDE BASE_FOLDER DATA BATCH_SIZE`, where DATA is `shared`, `own`, or an objective other
than `sft` (`train/bench_objectives.py`), then one command per line of standard input:
`step` (one training step) or `floor` (its matrix products alone, at the best speed this machine reaches). Each command
is answered with one line of JSON.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.manifest import ComputeRecord, Precision
from config.signals import interrupted_by_sigterm
from config.training import RecipeConfig, TrainingConfig
from train.attention import grouped_attention_of
from train.base.quantize import load_causal_lm
from train.bench_examples import NUM_EXAMPLES, BatchShape, examples
from train.bench_memory import peak_bytes
from train.compute import compute_in
from train.data.encode import IGNORED, Encoded
from train.methods.table import method_of
from train.objectives.answer_loss import shared_prefix_length
from train.objectives.objective import Loaded
from train.objectives.sft import make_trainer, sft_config, sft_data, to_dataset
from train.training import ADAPTER_NAME, measure_compute

_FLOOR_RUNS = 3


@dataclass(frozen=True)
class Product:
    """rows x inner times inner x columns, `times` in a step."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


ShapeIn = Callable[[Any], BatchShape]


class NotedBatches:
    """A collator that records each batch's shape in step order, because the data loader fetches ahead."""

    def __init__(self, collate: Any, shape_in: ShapeIn) -> None:
        self._collate, self._shape_in = collate, shape_in
        self.shapes: list[BatchShape] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self._collate(rows)
        self.shapes.append(self._shape_in(batch))
        return batch


class StepOnRequest(TrainerCallback):
    """Waits for a command on standard input before each step, and answers with the step's timing."""

    def __init__(self, trainer: Trainer, shape_in: ShapeIn) -> None:
        self._trainer = trainer
        self._batches = NotedBatches(trainer.data_collator, shape_in)
        trainer.data_collator = self._batches
        self._start_s = self._took_s = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for line in sys.stdin:
            if line.strip() == "step":
                self._start_s = time.perf_counter()
                return
            # Of the step before: the one that the answer is held against.
            products = products_of(self._trainer.model, self._batches.shapes[state.global_step - 1])
            write_answer({"seconds": seconds_of(products, args.bf16), "gflop": 1e-9 * flops_of(products)})
        sys.exit(0)  # standard input has ended

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._took_s = time.perf_counter() - self._start_s

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            num_tokens = self._batches.shapes[state.global_step - 1].num_tokens
            figures = {"seconds": self._took_s, "num_tokens": num_tokens, "loss": logs["loss"]}
            write_answer(figures | {"peak_bytes": peak_bytes()})


def shape_of(input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor) -> BatchShape:
    num_tokens, num_rows = int(attention_mask.sum()), len(input_ids)
    num_shared = shared_prefix_length(input_ids, labels) if num_rows > 1 else 0
    num_distinct = num_tokens - (num_rows - 1) * num_shared
    return BatchShape(num_tokens, num_distinct, int((labels != IGNORED).sum()))


def shape_in(batch: dict[str, torch.Tensor]) -> BatchShape:
    return shape_of(batch["input_ids"], batch["labels"], batch["attention_mask"])


def products_of(model: Any, batch: BatchShape) -> Counter[Product]:
    """Matrix products of a LoRA step: each layer's forward and input gradient, and those of the LoRA weights.

    Gradients of frozen weights are not computed. Attention's products are left out; their share is small.
    """
    products: Counter[Product] = Counter()
    n = batch.num_distinct
    for layer in (module for module in model.modules() if isinstance(module, Linear)):
        lora_a, lora_b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
        assert isinstance(lora_a, torch.Tensor)
        assert isinstance(lora_b, torch.Tensor)
        (r, inner), columns = lora_a.shape, len(lora_b)
        forward = Product(n, inner, columns), Product(n, inner, r), Product(n, r, columns)
        to_input = Product(n, columns, inner), Product(n, columns, r), Product(n, r, inner)
        to_lora = Product(columns, n, r), Product(r, n, inner)
        products.update((*forward, *to_input, *to_lora))
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    products.update(
        (Product(batch.num_answer_tokens, hidden, vocabulary), Product(batch.num_answer_tokens, vocabulary, hidden))
    )
    return products


def flops_of(products: Mapping[Product, int]) -> int:
    return sum(times * product.flops for product, times in products.items())


def seconds_of(products: Mapping[Product, int], is_bf16: bool) -> float:
    """Seconds of the matrix products alone, each the fastest of several runs."""
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    return sum(times * _fastest_s(product, dtype) for product, times in products.items())


def _fastest_s(product: Product, dtype: torch.dtype) -> float:
    left = torch.randn(product.rows, product.inner, dtype=dtype)
    right = torch.randn(product.columns, product.inner, dtype=dtype)
    took = []
    for _ in range(_FLOOR_RUNS + 1):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        took.append(time.perf_counter() - start)
    return min(took[1:])


def write_answer(figures: Mapping[str, float | str | bool]) -> None:
    print(json.dumps(figures), flush=True)


def make_side(side: str, base_folder: Path, data: str, batch_size: int, run_folder: Path) -> SFTTrainer:
    """`lorikeet`: the trainer of `lorikeet train`. `trl-...`: TRL's own trainer in that dtype, unchanged."""
    recipe = RecipeConfig(max_steps=NUM_EXAMPLES // batch_size, per_device_train_batch_size=batch_size)
    config = TrainingConfig(recipe=recipe)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    rows = examples(tokenizer, data)
    model = load_causal_lm(base_folder)
    compute = _compute_of(side, model, config, rows)
    compute_in(model, compute)
    set_seed(recipe.seed)
    peft_config = method_of(config.method).peft_config(config.method, model)
    if side == "lorikeet":
        loaded = Loaded(model, peft_config, compute)
        trainer = make_trainer(config, sft_data(rows, rows[:1]), loaded, tokenizer, run_folder)
        trainer.args.logging_steps = 1
        return trainer
    model.config.use_cache = False
    args = sft_config(recipe, run_folder, compute, model)
    args.logging_steps, args.eval_strategy, args.load_best_model_at_end = 1, IntervalStrategy.NO, False
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def _compute_of(side: str, model: PreTrainedModel, config: TrainingConfig, rows: list[Encoded]) -> ComputeRecord:
    if side == "lorikeet":
        return measure_compute(model, config, rows)
    precision: Precision = "float32" if side == "trl-float32" else "bfloat16"
    return ComputeRecord(precision=precision, num_threads=torch.get_num_threads())


def _computes(trainer: Trainer) -> str:
    precision = "bfloat16" if trainer.args.bf16 else "float32"
    return f"{precision}, {torch.get_num_threads()} threads"


def main() -> None:
    side, base_folder, data, batch_size = sys.argv[1:]
    with interrupted_by_sigterm(), tempfile.TemporaryDirectory() as folder:
        trainer: Any
        if data in ("shared", "own"):
            trainer, count = make_side(side, Path(base_folder), data, int(batch_size), Path(folder)), shape_in
        else:
            from train.bench_objectives import make_objective_side, predicted_tokens  # imports TRL's other trainers

            trainer = make_objective_side(side, Path(base_folder), data, int(batch_size), Path(folder))
            count = predicted_tokens
        trainer.add_callback(StepOnRequest(trainer, count))
        trainer.remove_callback(PrinterCallback)
        base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
        with grouped_attention_of(base) if side == "lorikeet" else nullcontext():
            write_answer({"computes": _computes(trainer), "is_bf16": trainer.args.bf16})
            trainer.train()


if __name__ == "__main__":
    main()
