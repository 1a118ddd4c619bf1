"""Answers of base and adapters without a server: `python -m train.evaluate.offline < job.json`.

The job is an `OfflineJob` of config/offline.py; each answer is a line of JSON on stdout, an error a line on stderr. The
base is loaded once, and each adapter put on it and taken off again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

import typer
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters.store.manifest import ComputeRecord
from config.offline import OfflineAnswer, OfflineJob, OfflineModel
from train.compute import Shape, compute_in, measure_inference
from train.errors import TrainingMemoryError
from train.methods.method import Trainable
from train.shell import shell

BATCH_SIZE = 40
"""Smaller than in training's evaluation: a batch is what a killed run loses."""

# A model, the shape of its prompts and the number of new tokens.
Measure = Callable[[Trainable, Shape, int], ComputeRecord]


def answers_of(job: OfflineJob, measure: Measure = measure_inference) -> Iterator[OfflineAnswer]:
    """The answers to a job's questions, batch by batch.

    Args:
        measure: Chooses the precision, once for all models.

    Raises:
        DataError: The base's chat template rejects a conversation.
    """
    from transformers import AutoTokenizer

    from train.base.quantize import load_causal_lm

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(job.base_folder)
    base, compute = load_causal_lm(job.base_folder).eval(), None
    for asked in job.models:
        prompts = _prompts(asked, tokenizer)
        model = _with_adapter(base, asked)
        lengths = sorted(map(len, prompts))
        shape = Shape(min(BATCH_SIZE, len(prompts)), lengths[len(lengths) // 2])
        compute = compute or measure(model, shape, asked.dataset.evaluation.max_new_tokens)
        compute_in(model, compute)
        yield from _answers(model, tokenizer, asked, prompts)
        base = _without_adapter(model)


def _prompts(asked: OfflineModel, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    from train.data.encode import encode_prompt

    return [encode_prompt(tokenizer, question.messages, asked.template_time) for question in asked.questions]


def _answers(
    model: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    asked: OfflineModel,
    prompts: Sequence[tuple[int, ...]],
) -> Iterator[OfflineAnswer]:
    from train.evaluate.local import generate

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        found = generate(model, tokenizer, [prompts[place] for place in batch], asked.dataset)
        for place, answer in zip(batch, found, strict=True):
            yield OfflineAnswer(
                model=asked.name,
                id=asked.questions[place].id,
                text=answer.text,
                num_prompt_tokens=len(answer.prompt_token_ids),
                num_answer_tokens=len(answer.token_ids),
            )


def _with_adapter(base: PreTrainedModel, asked: OfflineModel) -> Trainable:
    if asked.adapter_folder is None:
        return base
    return PeftModel.from_pretrained(base, str(asked.adapter_folder)).eval()


def _without_adapter(model: Trainable) -> PreTrainedModel:
    """The base as it was; virtual tokens do not change it."""
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()
    assert isinstance(base, PreTrainedModel)
    return base


def main() -> None:
    from train.out_of_memory import is_out_of_memory

    with shell():
        job = OfflineJob.model_validate_json(sys.stdin.buffer.read())
        try:
            for answer in answers_of(job):
                print(answer.model_dump_json(), flush=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingMemoryError(
                f"Out of memory with base {job.base_folder.name!r}. Stop other processes, or use a smaller base."
            ) from error


if __name__ == "__main__":
    typer.run(main)
