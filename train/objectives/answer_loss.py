"""TRL's trainer reduced to the computation that the answer loss needs, verified against the model's forward."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from train.attention import Packed, can_pack, packed_rows
from train.data.encode import IGNORED
from train.methods.method import base_of

LossPath = Literal["packed rows", "shared prefix", "answer positions", "own forward"]
# Fastest first. The model's own forward, given the labels, is what they must equal.
FAST_PATHS: tuple[LossPath, ...] = ("packed rows", "shared prefix", "answer positions")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PaddedBatch:
    """Examples padded on the right: `input_ids`, `attention_mask` and `labels`, each (B, T).

    `num_shared` is the length of the common prefix whose keys and values can be shared.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    num_shared: int

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_answer_tokens(self) -> torch.Tensor:
        return (self.labels[:, 1:] != IGNORED).sum()

    def longest_and_shortest(self) -> "PaddedBatch":
        """Two rows, even if all have one length: a single row cannot reveal leaks between rows."""
        order = self.attention_mask.sum(1).argsort().tolist()
        rows = sorted({order[0], order[-1]})
        return PaddedBatch(self.input_ids[rows], self.attention_mask[rows], self.labels[rows], self.num_shared)


@dataclass(frozen=True)
class LossAndGradient:
    """`gradient`: of all trainable weights, flattened, float32."""

    loss: float
    gradient: torch.Tensor

    def relative_gap(self, other: "LossAndGradient") -> tuple[float, float]:
        """Relative differences of the other's loss and gradient."""
        gradient_gap = float((other.gradient - self.gradient).norm() / self.gradient.norm().clamp(min=1e-12))
        return abs(other.loss - self.loss) / max(abs(self.loss), 1e-12), gradient_gap


class AnswerLossTrainer(SFTTrainer):
    """TRL's trainer with less computation for the same loss, for training on a CPU.

    The model's own forward runs, but its output layer sees the answer's positions only (on a CPU, TRL projects every
    position onto the vocabulary). The common prefix of a batch (the system prompt) is
    computed once instead of once per example: its keys, values and gradient are shared.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # TRL warns of a second forward pass, which the loss below does not need.
            warnings.filterwarnings("ignore", "`label_smoothing_factor` is deprecated", FutureWarning)
            super().__init__(*args, **kwargs)
        self._loss_paths = LossPaths(exact_paths(self.args), self.args.label_smoothing_factor)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        assert not return_outputs  # `prediction_loss_only` is set
        causal_lm = base_of(self.accelerator.unwrap_model(model))
        num_shared = shared_prefix_length(inputs["input_ids"], inputs["labels"])
        batch = PaddedBatch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], num_shared)
        with self.accelerator.autocast():
            path = self._loss_paths.choose(causal_lm, batch)
            loss = summed_loss(causal_lm, batch, path, self.args.label_smoothing_factor)
        return loss / (batch.num_answer_tokens if num_items_in_batch is None else num_items_in_batch)


def exact_paths(args: TrainingArguments) -> tuple[LossPath, ...]:
    """The fast paths that stay exact with these settings.

    The noise of NEFTune depends on a row's length, and differs from row to row: no row may share its tokens.
    Activations that are computed again in the backward pass know neither shared keys and values nor packed rows.
    """
    is_alone = args.neftune_noise_alpha is not None or args.gradient_checkpointing
    return ("answer positions",) if is_alone else FAST_PATHS


class LossPaths:
    """Decides which fast paths may be used, by comparing their loss and gradient with the model's forward.

    The comparison uses two examples of the batch. It is repeated for a batch longer than all before, because
    attention windows and position scaling take effect beyond some length. This is rare, as training starts with
    the longest batch.
    """

    def __init__(self, paths: Sequence[LossPath] = FAST_PATHS, label_smoothing: float = 0.0) -> None:
        self._equal_up_to: dict[LossPath, int] = dict.fromkeys(FAST_PATHS, 0)
        self._unequal: set[LossPath] = set(FAST_PATHS) - set(paths)
        self._label_smoothing = label_smoothing

    def choose(self, causal_lm: PreTrainedModel, batch: PaddedBatch) -> LossPath:
        has_shared = batch.num_shared > 0
        can_pack_rows = has_shared and can_pack(causal_lm, batch.num_tokens)
        if can_pack_rows and self._is_equal("packed rows", causal_lm, batch):
            return "packed rows"
        if has_shared and self._is_equal("shared prefix", causal_lm, batch):
            return "shared prefix"
        return "answer positions" if self._is_equal("answer positions", causal_lm, batch) else "own forward"

    def _is_equal(self, path: LossPath, causal_lm: PreTrainedModel, batch: PaddedBatch) -> bool:
        if path in self._unequal:
            return False
        if batch.num_tokens > self._equal_up_to[path]:
            if not _gives_own_loss(path, causal_lm, batch, self._label_smoothing):
                self._unequal.add(path)
                return False
            self._equal_up_to[path] = batch.num_tokens
        return True


def summed_loss(
    causal_lm: PreTrainedModel, batch: PaddedBatch, path: LossPath, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of the negative log-likelihood of all answer tokens, nats; smoothed, the targets are spread."""
    if path == "own forward" and label_smoothing:
        output = causal_lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return _summed(output.logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), label_smoothing)
    if path == "own forward":
        output = causal_lm(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
        )
        own_mean: torch.Tensor = output.loss
        return own_mean * batch.num_answer_tokens
    if path == "packed rows":
        return _packed_loss(causal_lm, batch, label_smoothing)
    num_shared = batch.num_shared if path == "shared prefix" else 0
    labels = batch.labels[:, num_shared + 1 :]
    is_answer = labels != IGNORED
    cache = _shared_cache(causal_lm, batch) if num_shared else None
    with _answer_positions_only(causal_lm, is_answer):
        output = causal_lm(
            input_ids=batch.input_ids[:, num_shared:],
            attention_mask=batch.attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    return _summed(output.logits[0], labels[is_answer], label_smoothing)


def _packed_loss(causal_lm: PreTrainedModel, batch: PaddedBatch, label_smoothing: float) -> torch.Tensor:
    """Pack the batch into one row: the shared tokens, then the rest of each row; see `train.attention`."""
    num_rows, num_shared = len(batch.input_ids), batch.num_shared
    shared, rest = batch.input_ids[:1, :num_shared], batch.input_ids[:, num_shared:]
    positions = torch.arange(num_shared + rest.shape[1], device=rest.device)
    labels = torch.nn.functional.pad(batch.labels[:, num_shared + 1 :], (0, 1), value=IGNORED).view(1, -1)
    is_answer = torch.nn.functional.pad(labels != IGNORED, (num_shared, 0))[:, :-1]
    with packed_rows(Packed(num_shared, num_rows)), _answer_positions_only(causal_lm, is_answer):
        output = causal_lm(
            input_ids=torch.cat([shared, rest.reshape(1, -1)], 1),
            position_ids=torch.cat([positions[:num_shared], positions[num_shared:].repeat(num_rows)])[None],
            use_cache=False,
        )
    return _summed(output.logits[0], labels[labels != IGNORED], label_smoothing)


def _summed(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Args: logits: (N, vocabulary). labels: (N,), -100 at positions without loss."""
    return torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )


def shared_prefix_length(input_ids: torch.Tensor, labels: torch.Tensor) -> int:
    """Length of the common prefix of all rows, excluding the position that predicts the first answer token.

    Args:
        input_ids: (B, T), padded on the right.
        labels: (B, T), -100 at positions without loss.
    """
    is_same = (input_ids == input_ids[:1]).all(0)
    is_prompt = (labels == IGNORED).all(0)
    num_same = int((is_same & is_prompt).long().cumprod(0).sum())
    return max(min(num_same, int(is_prompt.long().cumprod(0).sum()) - 1), 0)


def _shared_cache(causal_lm: PreTrainedModel, batch: PaddedBatch) -> Any:
    """KV cache of the shared tokens, computed for one row and repeated for all."""
    prefix = batch.input_ids[:1, : batch.num_shared]
    cache = causal_lm.get_decoder()(input_ids=prefix, use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(batch.input_ids))
    return cache


@contextmanager
def hidden_states_selected(
    causal_lm: PreTrainedModel, select: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Apply the model's output layer only to what `select` returns of the (B, T, H) hidden states."""

    def hook(module: torch.nn.Module, args: object, output: Any) -> Any:
        output.last_hidden_state = select(output.last_hidden_state)
        return output

    handle = causal_lm.get_decoder().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _answer_positions_only(causal_lm: PreTrainedModel, is_answer: torch.Tensor) -> AbstractContextManager[None]:
    """Only the (1, N, H) hidden states that predict the answer."""
    return hidden_states_selected(causal_lm, lambda hidden: hidden[:, :-1][is_answer][None])


def _gives_own_loss(
    path: LossPath, causal_lm: PreTrainedModel, batch: PaddedBatch, label_smoothing: float = 0.0
) -> bool:
    """Compare loss and gradient on two examples, and log the result."""
    sample = batch.longest_and_shortest()
    own = loss_and_gradient(causal_lm, sample, "own forward", label_smoothing)
    fast = loss_and_gradient(causal_lm, sample, path, label_smoothing)
    loss_gap, gradient_gap = own.relative_gap(fast)
    max_loss_gap, max_gradient_gap = _tolerance(causal_lm)
    # Also false for a loss that is not a number.
    is_equal = loss_gap <= max_loss_gap and gradient_gap <= max_gradient_gap
    verdict = "equals" if is_equal else "is disabled: it differs from"
    logger.log(
        logging.INFO if is_equal else logging.WARNING,
        "training loss by %s %s the model's own forward at %d tokens: loss %.4f and %.4f, gradient %.1e apart",
        path, verdict, batch.num_tokens, fast.loss, own.loss, gradient_gap,
    )  # fmt: skip
    return is_equal


@torch.enable_grad()
def loss_and_gradient(
    causal_lm: PreTrainedModel, batch: PaddedBatch, path: LossPath, label_smoothing: float = 0.0
) -> LossAndGradient:
    """Mean loss per answer token and its gradient, without dropout; the weights' `grad` is not changed."""
    was_training = causal_lm.training
    causal_lm.eval()
    try:
        loss = summed_loss(causal_lm, batch, path, label_smoothing) / batch.num_answer_tokens
        weights = [weight for weight in causal_lm.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    finally:
        causal_lm.train(was_training)
    return LossAndGradient(loss.item(), torch.cat([gradient.float().flatten() for gradient in gradients]))


def _tolerance(causal_lm: PreTrainedModel) -> tuple[float, float]:
    """Tolerance: the largest relative difference of loss and gradient that rounding in this dtype explains."""
    is_bf16 = causal_lm.dtype == torch.bfloat16 or torch.is_autocast_enabled(causal_lm.device.type)
    return (0.02, 0.2) if is_bf16 else (0.001, 0.01)
