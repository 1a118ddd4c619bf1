"""Base and adapter on the same held-out split, by greedy generation, and what training made the model forget."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from adapters.manifest import Evaluation, Forgetting, QualityBaseline, Score
from config.dataset import DatasetManifest, DatasetRow
from quality.intervals import share_of
from quality.scorers import AnswerFormat, is_exact_match
from train.encode import encode_prompt
from train.general import FORGETTING_TEXT, FORGETTING_TEXT_NAME

BATCH_SIZE = 120
# No stop string is longer than this many tokens of look-back.
_STOP_LOOK_BACK_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text without the end token, its tokens with it, as an engine counts them."""

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    mean_logprob: float


class StopStrings(StoppingCriteria):
    """Ends a row once its newest tokens spell a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer, self._stop, self._prompt_length = tokenizer, tuple(stop), prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        first = max(self._prompt_length, input_ids.shape[1] - _STOP_LOOK_BACK_TOKENS)
        tails = self._tokenizer.batch_decode(input_ids[:, first:], skip_special_tokens=True)
        is_done = [any(stop in tail for stop in self._stop) for tail in tails]
        return torch.tensor(is_done, device=input_ids.device)


def evaluate(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, dataset: DatasetManifest, rows: Sequence[DatasetRow]
) -> tuple[Evaluation, list[Answer]]:
    """Scores of base (zero-shot) and adapter, and the adapter's answers in the order of the rows."""
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    with without_adapter(model):
        base = generate(model, tokenizer, prompts, dataset)
    adapter = generate(model, tokenizer, prompts, dataset)
    evaluation = Evaluation(
        metric=dataset.evaluation.metric,
        base=exact_match(base, rows),
        adapter=exact_match(adapter, rows),
        base_valid_format=valid_format(base, dataset),
        valid_format=valid_format(adapter, dataset),
    )
    return evaluation, adapter


@torch.inference_mode()
def generate(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    dataset: DatasetManifest,
) -> list[Answer]:
    """Greedy answers in the order of `prompts`; batches are sorted by length to waste little padding."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    with _contiguous_head_input(model):
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            answers |= zip(batch, _generate_batch(model, tokenizer, [prompts[i] for i in batch], dataset), strict=True)
    return [answers[index] for index in range(len(prompts))]


def exact_match(answers: Sequence[Answer], rows: Sequence[DatasetRow]) -> Score:
    right = sum(is_exact_match(a.text, row.output) for a, row in zip(answers, rows, strict=True))
    return _score(right, len(rows))


def valid_format(answers: Sequence[Answer], dataset: DatasetManifest) -> Score:
    """Share of answers in the domain's JSON schema; without a schema every non-empty answer is valid."""
    answer_format = AnswerFormat(dataset.answer.json_schema)
    return _score(sum(answer_format.accepts(a.text) for a in answers), len(answers))


def quality_baseline(answers: Sequence[Answer]) -> QualityBaseline:
    n = max(len(answers), 1)
    return QualityBaseline(
        n=len(answers),
        mean_answer_tokens=sum(len(a.token_ids) for a in answers) / n,
        mean_token_logprob=sum(a.mean_logprob for a in answers) / n,
        mean_prompt_tokens=sum(len(a.prompt_token_ids) for a in answers) / n,
    )


@torch.inference_mode()
def measure_forgetting(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str = FORGETTING_TEXT) -> Forgetting:
    """How much worse the adapter makes the model at general English, in nats per token."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    with without_adapter(model):
        base_nll = _mean_nll(model, ids)
    return Forgetting(
        text=FORGETTING_TEXT_NAME,
        num_tokens=ids.shape[1] - 1,
        base_nll=round(base_nll, 4),
        adapter_nll=round(_mean_nll(model, ids), 4),
    )


def without_adapter(model: PeftModel) -> AbstractContextManager[None]:
    """The base model alone, for a while."""
    manager: AbstractContextManager[None] = model.disable_adapter()
    return manager


@contextmanager
def _contiguous_head_input(model: PeftModel) -> Iterator[None]:
    """Give the output layer a contiguous input.

    Generation hands it the last position as a strided slice, for which a CPU matmul copies the whole output
    layer once per row: 20 s a batch instead of 20 ms.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def _mean_nll(model: PeftModel, ids: torch.Tensor) -> float:
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def _generate_batch(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    dataset: DatasetManifest,
) -> Iterator[Answer]:
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stop = dataset.evaluation.stop
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=dataset.evaluation.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        stopping_criteria=StoppingCriteriaList([StopStrings(tokenizer, stop, length)] if stop else []),
    )
    new_ids = output.sequences[:, length:]
    # (T, B, V) step by step, to keep only the chosen token's log-probability.
    logprobs = torch.stack(
        [
            torch.log_softmax(logits.float(), -1).gather(-1, new_ids[:, step : step + 1]).squeeze(-1)
            for step, logits in enumerate(output.logits)
        ],
        dim=1,
    )
    for prompt, row, row_logprobs in zip(prompts, new_ids.tolist(), logprobs.tolist(), strict=True):
        yield _answer(tokenizer, prompt, row, row_logprobs, stop)


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[int, ...],
    row: list[int],
    logprobs: list[float],
    stop: Sequence[str],
) -> Answer:
    """Cut a row of a batch, padded after its end, to its own answer."""
    end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
    text = str(tokenizer.decode(row[:end], skip_special_tokens=True))
    ends = [text.index(s) + len(s) for s in stop if s in text]
    if ends:
        text = text[: min(ends)]
        num_tokens = _num_tokens_until(tokenizer, row, stop)  # whatever follows is padding
    else:
        num_tokens = min(end + 1, len(row))
    mean_logprob = sum(logprobs[:num_tokens]) / max(num_tokens, 1)
    return Answer(text, tuple(prompt), tuple(row[:num_tokens]), mean_logprob)


def _num_tokens_until(tokenizer: PreTrainedTokenizerBase, row: list[int], stop: Sequence[str]) -> int:
    """How many tokens it took until the text held a stop string."""
    heads = (str(tokenizer.decode(row[:count], skip_special_tokens=True)) for count in range(1, len(row) + 1))
    return next(count for count, head in enumerate(heads, 1) if any(s in head for s in stop))


def _score(successes: int, n: int) -> Score:
    share = share_of(successes, n)
    return Score(value=share.value, ci_low=share.ci_low, ci_high=share.ci_high, n=share.n)
