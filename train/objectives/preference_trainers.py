"""TRL's preference trainers on rows that are encoded already, and ORPO in the memory of DPO's."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from train.data.encode import IGNORED
from train.methods.method import base_of
from train.objectives.answer_loss import exact_paths
from train.objectives.shared_prompts import Groups, SharedPrompts
from train.objectives.start import ResumesBesideReference
from train.processes import num_processes


class _SharesPrompts:
    """For trainers of TRL: policy and reference compute prompts once, where that equals TRL's numbers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._shared_prompts = SharedPrompts(can_share="packed rows" in exact_paths(trainer.args))

    def _compute_loss(self: Any, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        with self._sharing(model, self._groups(len(inputs["input_ids"]))):
            loss: torch.Tensor = super()._compute_loss(model, inputs, *args)  # type: ignore[misc]  # of the other base
        return loss

    def _sharing(self: Any, model: torch.nn.Module, groups: Groups) -> AbstractContextManager[None]:
        if torch.cuda.is_available() or num_processes() > 1:
            return nullcontext()
        sharing: AbstractContextManager[None] = self._shared_prompts.in_forward(
            base_of(self.accelerator.unwrap_model(model)), groups
        )
        return sharing


class PairTrainer(_SharesPrompts, ResumesBesideReference, DPOTrainer):
    """TRL's DPO; the prompt of a pair is computed once, and the output layer sees the answers' positions only."""

    def _groups(self, num_rows: int) -> Groups:
        """TRL's collator puts all chosen answers before the rejected ones."""
        return [(row, row + num_rows // 2) for row in range(num_rows // 2)]

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class OrpoTrainer(PairTrainer):
    """The loss of TRL's ORPO, which is experimental there and keeps the logits of every position.

    Mean negative log-likelihood of prompt and chosen answer, minus beta times the log-sigmoid of the log odds ratio of
    the answers' mean log-probabilities.
    """

    def _compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool
    ) -> torch.Tensor:
        assert not return_outputs  # `prediction_loss_only` is set
        mask, is_answer = inputs["attention_mask"], inputs["completion_mask"]
        num_pairs = len(mask) // 2
        has_loss = torch.cat([mask[:num_pairs], is_answer[num_pairs:]])
        with self._sharing(model, self._groups(len(mask))):
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=mask,
                labels=inputs["input_ids"].masked_fill(has_loss == 0, IGNORED),
                use_cache=False,
                fused_lm_head=True,
            )
        logprobs = outputs.log_probs.float()
        nll: torch.Tensor = -logprobs[:num_pairs].sum() / mask[:num_pairs, 1:].sum()
        log_odds = log_odds_ratio(logprobs, is_answer[:, 1:])
        return nll - self.beta * torch.nn.functional.logsigmoid(log_odds).mean()


def log_odds_ratio(logprobs: torch.Tensor, is_answer: torch.Tensor) -> torch.Tensor:
    """(B,) of (2B, T) token log-probabilities: B chosen answers, then B rejected ones."""
    mean = (logprobs * is_answer).sum(1) / is_answer.sum(1)
    odds = mean - torch.log(-torch.expm1(mean))
    chosen, rejected = odds.chunk(2)
    return chosen - rejected


class SingleTrainer(_SharesPrompts, ResumesBesideReference, KTOTrainer):
    """TRL's KTO; each answer's prompt also gets the answer of the row before it in its batch, to estimate the KL."""

    def _groups(self, num_rows: int) -> Groups:
        return [(row,) for row in range(num_rows)]

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: object, args: Any, dataset_name: str, **kwargs: Any
    ) -> Dataset:
        if dataset_name == "train":
            dataset = dataset.shuffle(seed=args.seed)
        if not self.calculate_KL:
            return dataset
        answers, size = list(dataset["completion_ids"]), args.per_device_train_batch_size
        batches = [answers[start : start + size] for start in range(0, len(answers), size)]
        return dataset.add_column("KL_completion_ids", [a for batch in batches for a in [batch[-1], *batch[:-1]]])
