"""One side of `lorikeet bench train`: a trainer that runs one step per command and writes its timing as JSON.

`python -m train.bench_worker SIDE BASE_FOLDER DATA BATCH_SIZE`, then one command per line of standard input:
`step` (one training step) or `floor` (its matrix products alone, at the best speed this machine reaches). Each command
is answered with one line of JSON.
"""

import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.manifest import ComputeRecord, Precision
from config.dataset import Message
from config.domain import RecipeConfig
from config.signals import interrupted_by_sigterm
from train.attention import grouped_attention_of
from train.base.quantize import load_causal_lm
from train.compute import compute_in
from train.data.encode import IGNORED, Encoded, encode
from train.data.general import FORGETTING_TEXT
from train.methods.recipe import lora_config
from train.objectives.answer_loss import shared_prefix_length
from train.objectives.sft import (
    ADAPTER_NAME,
    make_trainer,
    measure_compute,
    sft_config,
    to_dataset,
)

NUM_EXAMPLES = 512
_INSTRUCTION = 'Topic of the text, as JSON {"topic": "..."}. The text comes from a book; write nothing else but that.'
_TOPICS = ("a river", "the sea", "a war", "machines", "the law", "a garden", "stars", "trade")
_FLOOR_RUNS = 3
_TEMPLATE_TIME = datetime(2026, 1, 1)


@dataclass(frozen=True)
class Product:
    """rows x inner times inner x columns, `times` in a step."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


def examples(tokenizer: PreTrainedTokenizerBase, data: str, seed: int = 13) -> list[Encoded]:
    """The same for all sides. `shared`: one system prompt for all examples; `own`: a different text for each."""
    rng = random.Random(seed)
    words = FORGETTING_TEXT.split()
    return [_example(tokenizer, words, data, rng) for _ in range(NUM_EXAMPLES)]


def _example(tokenizer: PreTrainedTokenizerBase, words: list[str], data: str, rng: random.Random) -> Encoded:
    topic = rng.randrange(len(_TOPICS))
    text = " ".join(rng.choices(words, k=rng.randint(6, 18)))
    system = _INSTRUCTION if data == "shared" else " ".join(rng.choices(words, k=len(_INSTRUCTION.split())))
    messages = (
        Message(role="system", content=system),
        Message(role="user", content=f"{words[topic]} {text}"),
        Message(role="assistant", content=json.dumps({"topic": _TOPICS[topic]})),
    )
    return encode(tokenizer, messages, _TEMPLATE_TIME)


@dataclass(frozen=True)
class BatchShape:
    """Tokens of a batch, without padding.

    Attributes:
        num_tokens: Tokens of all rows.
        num_distinct: `num_tokens` with the prefix shared by all rows counted once.
        num_answer_tokens: Tokens that the loss covers.
    """

    num_tokens: int
    num_distinct: int
    num_answer_tokens: int


class NotedBatches:
    """A collator that records each batch's shape in step order, because the data loader fetches ahead."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self.shapes: list[BatchShape] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self._collate(rows)
        self.shapes.append(shape_of(batch["input_ids"], batch["labels"], batch["attention_mask"]))
        return batch


class StepOnRequest(TrainerCallback):
    """Waits for a command on standard input before each step, and answers with the step's timing."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self._trainer = trainer
        self._batches = NotedBatches(trainer.data_collator)
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


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_answer(figures: Mapping[str, float | str | bool]) -> None:
    print(json.dumps(figures), flush=True)


def make_side(side: str, base_folder: Path, data: str, batch_size: int, run_folder: Path) -> SFTTrainer:
    """`lorikeet`: the trainer of `lorikeet train`. `trl-...`: TRL's own trainer in that dtype, unchanged."""
    recipe = RecipeConfig(max_steps=NUM_EXAMPLES // batch_size, per_device_train_batch_size=batch_size)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    rows = examples(tokenizer, data)
    model = load_causal_lm(base_folder)
    compute = _compute_of(side, model, recipe, rows)
    compute_in(model, compute)
    set_seed(recipe.seed)
    if side == "lorikeet":
        trainer = make_trainer(recipe, model, tokenizer, {"train": rows, "validation": rows[:1]}, run_folder, compute)
        trainer.args.logging_steps = 1
        return trainer
    model.config.use_cache = False
    args = sft_config(recipe, run_folder, compute)
    args.logging_steps, args.eval_strategy, args.load_best_model_at_end = 1, IntervalStrategy.NO, False
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        peft_config=lora_config(recipe, model),
    )


def _compute_of(side: str, model: PreTrainedModel, recipe: RecipeConfig, rows: list[Encoded]) -> ComputeRecord:
    if side == "lorikeet":
        return measure_compute(model, recipe, rows)
    precision: Precision = "float32" if side == "trl-float32" else "bfloat16"
    return ComputeRecord(precision=precision, num_threads=torch.get_num_threads())


def _computes(trainer: SFTTrainer) -> str:
    precision = "bfloat16" if trainer.args.bf16 else "float32"
    return f"{precision}, {torch.get_num_threads()} threads"


def main() -> None:
    side, base_folder, data, batch_size = sys.argv[1:]
    with interrupted_by_sigterm(), tempfile.TemporaryDirectory() as folder:
        trainer = make_side(side, Path(base_folder), data, int(batch_size), Path(folder))
        trainer.add_callback(StepOnRequest(trainer))
        trainer.remove_callback(PrinterCallback)
        base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
        with grouped_attention_of(base) if side == "lorikeet" else nullcontext():
            write_answer({"computes": _computes(trainer), "is_bf16": trainer.args.bf16})
            trainer.train()


if __name__ == "__main__":
    main()
