"""Initialisations of LoRA that run training examples through the base: EVA, CorDA and LoRA-GA."""

from collections.abc import Iterator, Sequence

import torch
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from train.data.encode import IGNORED, Encoded

_NUM_ROWS = 256
_NUM_GRADIENT_ROWS = 64
_BATCH_SIZE = 8


def initialise_eva(model: PeftModel, examples: Sequence[Encoded]) -> None:
    """Singular vectors of each layer's input; ranks move to the layers that need them."""
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(use_label_mask=False)  # answers are few tokens
    batches = [batch | {"attention_mask": batch["attention_mask"].bool()} for batch in _batches(examples, _NUM_ROWS)]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)


def prepare_corda(model: PreTrainedModel, config: LoraConfig, examples: Sequence[Encoded]) -> None:
    """Singular vectors of weight times covariance of the layer's input."""

    @torch.no_grad()
    def run() -> None:
        for batch in _batches(examples, _NUM_ROWS, batch_size=1):  # PEFT takes no larger ones
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    preprocess_corda(model, config, run_model=run)


def prepare_lora_ga(model: PreTrainedModel, config: LoraConfig, examples: Sequence[Encoded]) -> None:
    """Singular vectors of each weight's gradient."""

    def run() -> None:
        for batch in _batches(examples, _NUM_GRADIENT_ROWS):
            model(**batch, use_cache=False).loss.backward()

    # The hooks that count gradients see none at the first layer unless its input has one.
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    try:
        preprocess_loraga(model, config, run)
    finally:
        handle.remove()


def _batches(
    examples: Sequence[Encoded], num_rows: int, batch_size: int = _BATCH_SIZE
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded on the right: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    rows = examples[:num_rows]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids, labels = [torch.tensor(row.input_ids) for row in batch], [torch.tensor(row.labels) for row in batch]
        yield {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
