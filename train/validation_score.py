"""The domain's metric on the validation split, at each evaluation of the trainer."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from config.dataset import DatasetManifest, DatasetRow
from train.data.encode import encode_prompt
from train.evaluate.local import exact_match, generate
from train.methods.method import Trainable

logger = logging.getLogger(__name__)


class ValidationScore(TrainerCallback):
    """Adds `eval_exact_match` to the metrics of an evaluation; must stand before what reads them (early stopping)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, dataset: DatasetManifest, rows: Sequence[DatasetRow], at: datetime
    ) -> None:
        self._tokenizer, self._dataset, self._rows = tokenizer, dataset, rows
        self._prompts = [encode_prompt(tokenizer, row.prompt, at, row.tools) for row in rows]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Trainable | None = None,
        **kwargs: Any,
    ) -> None:
        assert metrics is not None
        assert model is not None
        score = self._score(model, is_autocast=args.bf16)
        metrics["eval_exact_match"] = score
        state.log_history.append({"step": state.global_step, "eval_exact_match": score})
        logger.info("step %d: exact match %.3f on the validation split", state.global_step, score)

    def _score(self, model: Trainable, *, is_autocast: bool) -> float:
        was_training = model.training
        model.eval()
        # Drawing answers must not move the random numbers of training: a resumed run draws others.
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast(model.device.type, torch.bfloat16, enabled=is_autocast):
            answers = generate(model, self._tokenizer, self._prompts, self._dataset)
        model.train(was_training)
        return exact_match(answers, self._rows).value
