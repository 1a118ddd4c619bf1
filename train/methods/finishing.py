"""From the trained model to the one that is served, and by how much a conversion changed its log-probabilities."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from adapters.lint.peft_folder import MAGNITUDE
from adapters.store.manifest import ComputeRecord, ConversionRecord
from config.converted_methods import ConvertedSettings
from config.training import TrainingConfig
from train.compute import set_precision
from train.data.encode import IGNORED, Encoded
from train.errors import ConversionError
from train.methods.factors import lora_layers
from train.methods.method import Trainable
from train.methods.table import method_of

MAX_EXACT_ERROR = 0.05
"""Limit for conversions that are exact but for rounding, nats per token."""
_NUM_ROWS = 32

logger = logging.getLogger(__name__)


def finish(
    config: TrainingConfig,
    model: Trainable,
    base_folder: Path,
    run_folder: Path,
    compute: ComputeRecord,
    held_out: Sequence[Encoded],
) -> tuple[Trainable, ConversionRecord | None]:
    """The model as it is served, rounded to bf16, and the error of a conversion.

    Args:
        held_out: Encoded held-out rows.

    Raises:
        ConversionError: The converted adapter differs from the trained one by more than the method's limit.
    """
    method = method_of(config.method)
    is_converted = method.served_as(config.method) == "converted to LoRA"
    model.eval()
    before = token_logprobs(model, held_out) if is_converted else []
    finished = method.finish(config.method, model, base_folder, run_folder)
    cast_model(finished, compute)
    finished.eval()
    if not is_converted:
        return finished, None
    assert isinstance(finished, PeftModel)
    error = mean_difference(before, token_logprobs(finished, held_out))
    ranks = [layer.r["default"] for _, layer in lora_layers(finished)]
    record = ConversionRecord(method=config.method.name, rank=max(ranks), error_nats=round(error, 5))
    _check(config, record)
    return finished, record


def cast_model(model: Trainable, compute: ComputeRecord) -> None:
    """Round an adapter's weights to bf16, so that evaluation uses the same weights as the saved adapter and vLLM."""
    for name, parameter in model.named_parameters():
        if is_saved(name) or name.startswith("prompt_encoder."):
            parameter.data = parameter.data.to(saved_dtype(name))
    set_precision(model, "float32" if compute.precision == "float32" else "bfloat16")


def is_saved(name: str) -> bool:
    """LoRA's weights, and the head of a reward model."""
    return "lora_" in name or ".modules_to_save." in name


def saved_dtype(name: str) -> torch.dtype:
    """Type of an adapter's tensor. DoRA's magnitudes change by a few percent, of which bf16 would lose a part."""
    return torch.float32 if MAGNITUDE in name else torch.bfloat16


@torch.inference_mode()
def token_logprobs(model: Trainable, rows: Sequence[Encoded]) -> list[torch.Tensor]:
    """Log-probability (nats) of each answer token in the first rows, by row."""
    found = []
    for row in rows[:_NUM_ROWS]:
        ids = torch.tensor([row.input_ids], device=model.device)
        labels = torch.tensor(row.labels, device=model.device)[1:]
        logits = model(input_ids=ids, use_cache=False).logits[0, -ids.shape[1] : -1].float()
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        found.append(chosen[labels != IGNORED])
    return found


def mean_difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Mean |difference| over all tokens, nats."""
    return float((torch.cat(list(before)) - torch.cat(list(after))).abs().mean())


def _check(config: TrainingConfig, record: ConversionRecord) -> None:
    settings = config.method
    limit = settings.max_conversion_error if isinstance(settings, ConvertedSettings) else MAX_EXACT_ERROR
    logger.info(
        "converted %s to a LoRA of rank %d: %.4f nats per token from the trained model (limit %g)",
        record.method, record.rank, record.error_nats, limit,
    )  # fmt: skip
    if record.error_nats <= limit:  # also false for NaN
        return
    raise ConversionError(
        f"The converted adapter differs from the trained one by {record.error_nats:.3f} nats per token, above the "
        f"limit of {limit:g}; nothing was published. Raise `method.convert_rank` or `method.max_conversion_error` and "
        "run again with `--resume`: it is not trained again."
    )
