"""Answers of a model that will be switched off: asked once, kept as a reference for its successors."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from openai import APIConnectionError, APIError, AsyncOpenAI, BadRequestError

from config.dataset import DatasetManifest, DatasetRow, Message
from loadtest.evaluate import EvaluationError, filled_by_server
from loadtest.evaluation.asking import Answers, SavedAnswer, ask_all, unreachable

_OWN_STOPS = ("stop",)
"""Left out for another provider: with a stop string it would cut off its last characters, which only vLLM can keep."""
_OPTIONAL = ("max_tokens", "temperature", "top_p", "response_format")
"""Left out as well where the provider refuses them, as reasoning models do."""


@dataclass(frozen=True)
class Recorded:
    """Answers of one model, and how many questions are left."""

    answers: Answers
    num_left: int

    @property
    def num_tokens(self) -> int:
        return tokens_of(self.answers.answers)


def tokens_of(answers: Collection[SavedAnswer]) -> int:
    """Tokens of prompts and answers together."""
    return sum(answer.num_prompt_tokens + answer.num_answer_tokens for answer in answers)


async def record_answers(
    client: AsyncOpenAI,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    model: str,
    folder: Path,
    *,
    max_tokens: int,
    concurrency: int,
    on_answers: Callable[[int], None] = lambda count: None,
) -> Recorded:
    """Ask a provider's model the questions; saved answers are not asked again.

    Args:
        max_tokens: Asks no more once all saved answers have so many, of prompts and answers.

    Raises:
        EvaluationError: A request failed, or another version answered; answers so far are saved.
    """
    await _check_answers(client, model)
    left_out = list(await filled_by_server(client, model)) or list(_OWN_STOPS)
    while True:
        try:
            answers = await ask_all(
                client,
                manifest,
                rows,
                model,
                folder,
                concurrency=concurrency,
                filled=tuple(left_out),
                is_over=lambda saved: tokens_of(saved) >= max_tokens,
                on_answers=on_answers,
            )
        except EvaluationError as error:
            field = _refused_field(error)
            if field is None or field in left_out:
                raise
            left_out.append(field)
        else:
            return Recorded(answers, sum(answer.e2e_s == 0.0 for answer in answers.answers))


def beside_reference(
    rows: Sequence[DatasetRow], answers: Sequence[Answers], reference: Answers
) -> tuple[list[DatasetRow], list[Answers]]:
    """The rows with a model's answers as the expected ones, and the answers of the other models.

    Raises:
        EvaluationError: There is no other model, or the reference called tools, which only the data set's are
            compared with.
    """
    others = [found for found in answers if found.digest != reference.digest]
    if not others:
        raise EvaluationError(
            f"Only {reference.served_by!r} has saved answers. Run `lorikeet eval run` for the model to compare with it."
        )
    if any(answer.calls for answer in reference.answers):
        raise EvaluationError(f"{reference.served_by!r} called tools: leave out `--reference`.")
    return [_expecting(row, answer.text) for row, answer in zip(rows, reference.answers, strict=True)], others


def _expecting(row: DatasetRow, text: str) -> DatasetRow:
    messages = (*row.prompt, Message(role="assistant", content=text))
    return row.model_copy(update={"output": text, "messages": messages})


async def _check_answers(client: AsyncOpenAI, model: str) -> None:
    """A wrong address is told at once, not after all the retries that a busy provider needs."""
    try:
        await client.with_options(max_retries=1).models.retrieve(model)
    except APIConnectionError as error:
        raise EvaluationError(unreachable(client)) from error
    except APIError:
        pass  # it answers; many providers list no fine-tuned models


def _refused_field(error: EvaluationError) -> str | None:
    """The optional field that the provider does not take, if that is why it refused the first question."""
    causes = getattr(error.__cause__, "exceptions", ())
    refusal = next((cause for cause in causes if isinstance(cause, BadRequestError)), None)
    return refusal.param if refusal is not None and refusal.param in _OPTIONAL else None
