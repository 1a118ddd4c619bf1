"""Golden prompts with the training stack's log-probabilities, which a server must reproduce before it serves."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from adapters.fingerprint import FINGERPRINT_FILE, Fingerprint, GoldenPrompt
from adapters.store.manifest import BaseManifest
from config.dataset import DatasetRow
from config.private import write_private
from train.compute import in_float32
from train.data.encode import Encoded, encode
from train.data.template import names_time
from train.evaluate.local import without_adapter
from train.methods.method import Trainable, base_of

NUM_GOLDEN_PROMPTS = 6


def make_fingerprint(
    model: Trainable, tokenizer: PreTrainedTokenizerBase, base: BaseManifest, rows: Sequence[DatasetRow], at: datetime
) -> Fingerprint:
    """Teacher-forced log-probabilities (nats) of reference answers, with and without the adapter, in bf16 weights.

    Args:
        at: The time passed to the chat template; stored if the template uses it.
    """
    with in_float32(model):
        prompts = tuple(_golden_prompt(model, tokenizer, row, at) for row in golden_rows(rows))
    return Fingerprint(
        base_digest=base.digest,
        chat_template_sha256=base.chat_template_sha256,
        template_time=at if names_time(tokenizer) else None,
        stop_token_ids=stop_token_ids(model, tokenizer),
        modules=adapted_modules(model),
        prompts=prompts,
    )


def golden_rows(rows: Sequence[DatasetRow], wanted: int = NUM_GOLDEN_PROMPTS) -> list[DatasetRow]:
    """The first rows with distinct answers, so that the prompts cover the answers broadly."""
    first_of_answer = list({row.output: row for row in reversed(rows)}.values())[::-1]
    rest = [row for row in rows if row not in first_of_answer]
    return (first_of_answer + rest)[:wanted]


@torch.inference_mode()
def answer_logprobs(model: Trainable, encoded: Encoded) -> tuple[float, ...]:
    """Log-probability (nats) of each answer token given all tokens before it; softmax in fp32."""
    ids = torch.tensor([encoded.input_ids], device=model.device)
    first = len(encoded.prompt_ids)
    logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 - ids.shape[1] : -1].float()
    chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, first:, None]).squeeze(-1)
    return tuple(chosen.tolist())


def adapted_modules(model: Trainable) -> tuple[str, ...]:
    """Full names, in the base model, of the layers with LoRA weights; none for a base of its own."""
    return tuple(
        sorted(
            name
            for name, module in base_of(model).named_modules()
            if isinstance(module, BaseTunerLayer) and module.active_adapters
        )
    )


def stop_token_ids(model: Trainable, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: the tokenizer's EOS and those of the generation configuration."""
    base = base_of(model)
    configured = base.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def write_fingerprint(fingerprint: Fingerprint, folder: Path) -> None:
    write_private(folder / FINGERPRINT_FILE, fingerprint.model_dump_json(indent=1) + "\n")


def _golden_prompt(model: Trainable, tokenizer: PreTrainedTokenizerBase, row: DatasetRow, at: datetime) -> GoldenPrompt:
    encoded = encode(tokenizer, row.messages, at, row.tools)
    with without_adapter(model):
        base_logprobs = answer_logprobs(model, encoded)
    return GoldenPrompt(
        messages=tuple(message.for_template() for message in row.prompt),
        tools=row.tools,
        prompt_token_ids=encoded.prompt_ids,
        answer_token_ids=encoded.answer_ids,
        adapter_logprobs=answer_logprobs(model, encoded),
        base_logprobs=base_logprobs,
    )
