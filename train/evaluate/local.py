"""Scores of base and adapter on the same held-out split, prompted as clients will, and forgetting."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from adapters.scores import Score, score_of
from adapters.store.evaluation_records import Evaluation, Forgetting, QualityBaseline
from config.dataset import DatasetManifest, DatasetRow
from quality.scorers import AnswerFormat, is_exact_match
from train.data.encode import encode_prompt
from train.data.general import FORGETTING_TEXT, FORGETTING_TEXT_NAME
from train.evaluate.base_answers import BaseAnswers
from train.evaluate.base_weights import with_weights_of_base
from train.evaluate.decoding import token_choice
from train.evaluate.generation import ChooseTokens, Continuation, continue_prompts, most_likely
from train.evaluate.stops import ends_answer, until_stop
from train.methods.method import Trainable

BATCH_SIZE = 120


@dataclass(frozen=True)
class EvaluatedAnswer:
    """One answer: text without the end token, token ids with it, as an engine counts them."""

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    mean_logprob: float


@dataclass(frozen=True)
class AnsweredRows:
    """Scores of base and adapter on the same rows, and the answers of both in row order."""

    evaluation: Evaluation
    base: list[EvaluatedAnswer]
    adapter: list[EvaluatedAnswer]


def evaluate(
    model: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetManifest,
    rows: Sequence[DatasetRow],
    at: datetime,
    on_answers: Callable[[int], None] = lambda count: None,
    known: BaseAnswers | None = None,
) -> AnsweredRows:
    """Scores and answers of base (zero-shot) and adapter.

    Args:
        at: The time passed to the chat template.
        on_answers: Called after each batch with its number of answers; two per row in total.
        known: Has answers of the base from earlier trainings, and keeps new ones.
    """
    prompts = [encode_prompt(tokenizer, row.prompt, at, row.tools) for row in rows]
    with without_adapter(model):
        base = _answers_of_base(model, tokenizer, prompts, dataset, on_answers, known)
    adapter = generate(model, tokenizer, prompts, dataset, on_answers)
    evaluation = Evaluation(
        metric="exact_match",
        base=exact_match(base, rows),
        adapter=exact_match(adapter, rows),
        base_valid_format=valid_format(base, dataset),
        valid_format=valid_format(adapter, dataset),
    )
    return AnsweredRows(evaluation, base, adapter)


def _answers_of_base(
    model: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    dataset: DatasetManifest,
    on_answers: Callable[[int], None],
    known: BaseAnswers | None,
) -> list[EvaluatedAnswer]:
    """Those of an earlier training, or new ones."""

    def ask() -> list[Any]:
        answers = generate(model, tokenizer, prompts, dataset, on_answers)
        return [[answer.text, answer.token_ids, answer.mean_logprob] for answer in answers]

    asked = decoding_of(dataset, tokenizer).asked(prompts)
    found = known.of(model, asked, ask, lambda: on_answers(len(prompts))) if known else ask()
    return [
        EvaluatedAnswer(text, tuple(prompt), tuple(token_ids), mean_logprob)
        for prompt, (text, token_ids, mean_logprob) in zip(prompts, found, strict=True)
    ]


def generate(
    model: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    dataset: DatasetManifest,
    on_answers: Callable[[int], None] = lambda count: None,
) -> list[EvaluatedAnswer]:
    """Answers as the domain's requests get them."""
    return answer_prompts(model, tokenizer, prompts, decoding_of(dataset, tokenizer), on_answers)


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded, and where they end."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    choose: ChooseTokens = most_likely

    def asked(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """All that answers to these prompts depend on beside the model, as JSON; None: also on how tokens are drawn."""
        if self.choose is not most_likely:
            return None
        return ["answers", prompts, self.max_new_tokens, self.stop]


def decoding_of(dataset: DatasetManifest, tokenizer: PreTrainedTokenizerBase) -> Decoding:
    settings = dataset.evaluation
    return Decoding(settings.max_new_tokens, settings.stop, token_choice(dataset, tokenizer))


def answer_prompts(
    model: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    decoding: Decoding,
    on_answers: Callable[[int], None] = lambda count: None,
) -> list[EvaluatedAnswer]:
    """Answers in the order of `prompts`; batches group prompts of similar length."""
    stop, is_finished = decoding.stop, ends_answer(tokenizer, decoding.stop)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, EvaluatedAnswer] = {}
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        own = [prompts[index] for index in batch]
        rows = continue_prompts(model, own, decoding.max_new_tokens, is_finished, decoding.choose)
        for index, row in zip(batch, rows, strict=True):
            answers[index] = _answer(tokenizer, prompts[index], row, stop)
        on_answers(len(batch))
    return [answers[index] for index in range(len(prompts))]


def exact_match(answers: Sequence[EvaluatedAnswer], rows: Sequence[DatasetRow]) -> Score:
    right = sum(is_exact_match(a.text, row.output) for a, row in zip(answers, rows, strict=True))
    return score_of(right, len(rows))


def valid_format(answers: Sequence[EvaluatedAnswer], dataset: DatasetManifest) -> Score:
    """Share of answers valid under the domain's JSON schema; without a schema, every non-empty answer is valid."""
    answer_format = AnswerFormat(dataset.answer.json_schema)
    return score_of(sum(answer_format.accepts(a.text) for a in answers), len(answers))


def quality_baseline(answers: Sequence[EvaluatedAnswer]) -> QualityBaseline:
    n = max(len(answers), 1)
    return QualityBaseline(
        n=len(answers),
        mean_answer_tokens=sum(len(a.token_ids) for a in answers) / n,
        mean_token_logprob=sum(a.mean_logprob for a in answers) / n,
        mean_prompt_tokens=sum(len(a.prompt_token_ids) for a in answers) / n,
    )


@torch.inference_mode()
def measure_forgetting(model: Trainable, tokenizer: PreTrainedTokenizerBase, text: str = FORGETTING_TEXT) -> Forgetting:
    """Loss of base and adapter on general English, in nats per token."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    with without_adapter(model):
        base_nll = _mean_nll(model, ids)
    return Forgetting(
        text=FORGETTING_TEXT_NAME,
        num_tokens=ids.shape[1] - 1,
        base_nll=round(base_nll, 4),
        adapter_nll=round(_mean_nll(model, ids), 4),
    )


def without_adapter(model: Trainable) -> AbstractContextManager[None]:
    """Disable the adapter until the block ends; a model whose own weights were trained gets those of its base."""
    if not isinstance(model, PeftModel):
        return with_weights_of_base(model)
    manager: AbstractContextManager[None] = model.disable_adapter()
    return manager


def _mean_nll(model: Trainable, ids: torch.Tensor) -> float:
    logits = model(input_ids=ids, use_cache=False).logits[0, -ids.shape[1] : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...], row: Continuation, stop: Sequence[str]
) -> EvaluatedAnswer:
    text = str(tokenizer.decode(row.token_ids, skip_special_tokens=True))
    mean_logprob = sum(row.logprobs) / max(len(row.logprobs), 1)
    return EvaluatedAnswer(until_stop(text, stop), tuple(prompt), tuple(row.token_ids), mean_logprob)
