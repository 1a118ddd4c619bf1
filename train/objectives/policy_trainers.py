"""TRL's reinforcement trainers on token ids, with the project's own generation and packed log-probabilities.

A row of the data set has `prompt` (token ids, as a server renders them) and `number` (of its question). TRL samples
`num_generations` answers of each prompt, asks the reward functions, and updates the weights.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from train.attention import Packed, can_pack, packed_rows
from train.data.encode import IGNORED
from train.evaluate.generation import ChooseTokens, Continuation, continue_prompts, most_likely
from train.evaluate.stops import ends_answer
from train.methods.method import Trainable, base_of
from train.objectives.answer_loss import hidden_states_selected
from train.objectives.start import ResumesBesideReference

_MOSTLY_EQUAL = 0.5
"""Share of groups with equal rewards from which training warns."""

logger = logging.getLogger(__name__)


class Sampled:
    """Draws tokens from the distribution at a temperature, with torch's own generator, which checkpoints keep."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, logits: torch.Tensor, rows: Sequence[Continuation]) -> torch.Tensor:
        return torch.multinomial((logits / self._temperature).softmax(-1), 1).squeeze(-1)


@dataclass
class EqualGroups:
    """Count of groups whose answers all got the same reward, and so gave no gradient."""

    num_equal: int = 0
    num_groups: int = 0

    def count(self, rewards: torch.Tensor) -> float:
        """Count a batch, (groups, answers); returns its share."""
        is_equal = (rewards == rewards[:, :1]).all(1)
        self.num_equal += int(is_equal.sum())
        self.num_groups += len(rewards)
        return float(is_equal.float().mean())

    @property
    def share(self) -> float:
        return self.num_equal / max(self.num_groups, 1)


class _Policy:
    """What both trainers do otherwise than TRL; `stop` are the stop strings that end an answer."""

    def __init__(self, *args: Any, stop: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = stop
        self.equal_groups = EqualGroups()
        self._packing = Packing()
        trainer: Any = self
        trainer.add_callback(EqualGroupsWarning(self.equal_groups))

    def _tokenize_prompts(self: Any, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(self: Any, prompt_ids: list[list[int]], *args: Any) -> Any:
        if self.use_vllm and self.model.training:
            return super()._generate_single_turn(prompt_ids, *args)  # type: ignore[misc]  # of the other base
        choose = Sampled(self.temperature) if self.model.training else most_likely
        return self._own_answers(prompt_ids, choose)

    def _own_answers(self: Any, prompt_ids: list[list[int]], choose: ChooseTokens) -> list[list[int]]:
        """Generate without dropout, in the precision of training."""
        model: Trainable = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                rows = continue_prompts(
                    model,
                    [tuple(ids) for ids in prompt_ids],
                    self.max_completion_length,
                    ends_answer(self._tokenizer, self.stop),
                    choose,
                )
        finally:
            model.train(was_training)
        return [row.token_ids for row in rows]

    def _calculate_rewards(self: Any, *args: Any) -> torch.Tensor:
        by_part: torch.Tensor = super()._calculate_rewards(*args)  # type: ignore[misc]  # of the other base
        if self.model.training:
            rewards = (by_part * self.reward_weights.to(by_part.device)).sum(1).view(-1, self.num_generations)
            self._metrics["train"]["equal_reward_groups"].append(self.equal_groups.count(rewards))
        return by_part

    def _get_per_token_logps_and_entropies(
        self: Any,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities and entropies (B, `logits_to_keep`) of the answers; zero at padding."""

        def own(rows: slice) -> torch.Tensor:
            ids, mask = input_ids[rows], attention_mask[rows]
            logprobs: torch.Tensor = super(_Policy, self)._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, ids, mask, logits_to_keep
            )[0]
            return logprobs

        causal_lm = base_of(self.accelerator.unwrap_model(model))
        batch = SampledBatch(input_ids, attention_mask, logits_to_keep)
        if kwargs.get("compute_aux_loss") or not self._packing.is_equal(
            causal_lm, batch, own, self.accelerator.autocast
        ):
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc,no-any-return]
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        with self.accelerator.autocast():
            logprobs, entropies = packed_logprobs(causal_lm, batch)
        return logprobs, entropies if kwargs.get("compute_entropy") else None, None

    def prediction_step(
        self: Any, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Held-out answers are only rewarded: a loss of theirs says nothing."""
        with torch.no_grad():
            self._prepare_inputs(inputs)
        return None, None, None


class GrpoPolicyTrainer(_Policy, ResumesBesideReference, GRPOTrainer):
    def _own_answers(self, prompt_ids: list[list[int]], choose: ChooseTokens) -> Any:
        return super()._own_answers(prompt_ids, choose), None


class RlooPolicyTrainer(_Policy, ResumesBesideReference, RLOOTrainer):
    pass


PolicyTrainer = GrpoPolicyTrainer | RlooPolicyTrainer


def make_trainer(objective: Literal["grpo", "rloo"], arguments: dict[str, Any], **kwargs: Any) -> PolicyTrainer:
    """The objective's trainer; `arguments` are those of its TRL configuration."""
    if objective == "grpo":
        return GrpoPolicyTrainer(args=GRPOConfig(**arguments), **kwargs)
    return RlooPolicyTrainer(args=RLOOConfig(**arguments), **kwargs)


class EqualGroupsWarning(TrainerCallback):
    """Warns once when most groups give no gradient, and tells their share at the end."""

    def __init__(self, groups: EqualGroups) -> None:
        self._groups = groups
        self._has_warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        share = (logs or {}).get("equal_reward_groups", 0.0)
        if share > _MOSTLY_EQUAL and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "step %d: in %.0f%% of the groups all answers have the same reward, which gives no gradient: raise "
                "`objective.temperature` or `num_generations`, or start `from` a version that is sometimes right",
                state.global_step, 100 * share,
            )  # fmt: skip

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logger.info(
            "%d of %d groups had answers of equal reward and gave no gradient",
            self._groups.num_equal, self._groups.num_groups,
        )  # fmt: skip


@dataclass(frozen=True)
class SampledBatch:
    """Prompts padded on the left and answers padded on the right: `input_ids` and `attention_mask`, (B, P + A)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    num_answer: int

    def groups(self) -> dict[tuple[int, ...], list[int]]:
        """The rows of each prompt."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        prompts, masks = self.input_ids[:, : -self.num_answer], self.attention_mask[:, : -self.num_answer]
        for row, (ids, mask) in enumerate(zip(prompts.tolist(), masks.tolist(), strict=True)):
            rows_of.setdefault(tuple(ids[len(ids) - sum(mask) :]), []).append(row)
        return rows_of

    @property
    def answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of the answers, (B, A) each."""
        return self.input_ids[:, -self.num_answer :], self.attention_mask[:, -self.num_answer :]

    def rows(self, rows: slice) -> "SampledBatch":
        return SampledBatch(self.input_ids[rows], self.attention_mask[rows], self.num_answer)


OwnLogprobs = Callable[[slice], torch.Tensor]


class Packing:
    """Whether the packed log-probabilities equal TRL's, compared on two rows of each batch longer than all before."""

    def __init__(self) -> None:
        self._equal_up_to = 0
        self._is_unequal = False

    def is_equal(
        self, causal_lm: PreTrainedModel, batch: SampledBatch, own: OwnLogprobs, autocast: Callable[[], Any]
    ) -> bool:
        num_tokens = batch.input_ids.shape[1]
        if self._is_unequal or not can_pack(causal_lm, num_tokens):
            return False
        if num_tokens > self._equal_up_to:
            self._is_unequal = not _packs_equally(causal_lm, batch.rows(slice(2)), own, autocast)
            self._equal_up_to = num_tokens
        return not self._is_unequal


def _packs_equally(
    causal_lm: PreTrainedModel, batch: SampledBatch, own: OwnLogprobs, autocast: Callable[[], Any]
) -> bool:
    with torch.no_grad(), autocast():
        packed, _ = packed_logprobs(causal_lm, batch)
        gap = (packed - own(slice(2))).abs().sum() / batch.answers[1].sum()
        is_bf16 = causal_lm.dtype == torch.bfloat16 or torch.is_autocast_enabled(causal_lm.device.type)
    is_equal = float(gap) <= (0.05 if is_bf16 else 1e-3)
    logger.log(
        logging.INFO if is_equal else logging.WARNING,
        "packed log-probabilities %s TRL's at %d tokens: %.1e apart",
        "equal" if is_equal else "are not used: they differ from", batch.input_ids.shape[1], float(gap),
    )  # fmt: skip
    return is_equal


def packed_logprobs(causal_lm: PreTrainedModel, batch: SampledBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of the answers, (B, A) each, by TRL's output head.

    Each prompt is computed once for all of its answers: the prompt's tokens but the last, then for each answer that
    last token and the answer's, of which the final one predicts nothing.
    """
    ids, mask = batch.answers
    logprobs: dict[int, torch.Tensor] = {}
    entropies: dict[int, torch.Tensor] = {}
    for prompt, rows in batch.groups().items():
        labels = ids[rows].masked_fill(mask[rows] == 0, IGNORED)
        output = _packed_output(causal_lm, torch.tensor(prompt, device=ids.device), ids[rows], labels)
        logprobs |= zip(rows, output.log_probs.view(labels.shape), strict=True)
        entropies |= zip(rows, output.entropy.view(labels.shape), strict=True)
    order = range(len(ids))
    return torch.stack([logprobs[row] for row in order]), torch.stack([entropies[row] for row in order])


def _packed_output(
    causal_lm: PreTrainedModel, prompt: torch.Tensor, answers: torch.Tensor, labels: torch.Tensor
) -> Any:
    num_shared, (num_rows, num_answer) = len(prompt) - 1, answers.shape
    rows = torch.cat([prompt[-1:].expand(num_rows, 1), answers[:, :-1]], 1)
    positions = torch.arange(num_shared + num_answer, device=prompt.device)
    with (
        packed_rows(Packed(num_shared, num_rows)),
        hidden_states_selected(causal_lm, lambda hidden: hidden[:, num_shared:]),
    ):
        return causal_lm(
            input_ids=torch.cat([prompt[:-1], rows.flatten()])[None],
            position_ids=torch.cat([positions[:num_shared], positions[num_shared:].repeat(num_rows)])[None],
            shift_labels=labels.reshape(1, -1),
            fused_lm_head=True,
        )
