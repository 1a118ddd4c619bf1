"""Ask requests at a fixed concurrency, streaming and timed; each answer is saved as it comes."""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIError, AsyncOpenAI, BadRequestError

from loadtest.evaluate import EvaluationError
from loadtest.evaluation.answer_lines import AnswerLines, read_lines
from loadtest.evaluation.asking import BASE, DIGEST_HEADER, NAME_HEADER, one_error, request_id


@dataclass(frozen=True)
class IdentifiedModel:
    """What answers under a name.

    Attributes:
        digest: Of the version; of a base, when it was prepared.
        filled: Request fields that the server fills in.
        is_ours: Whether the server is Lorikeet.
    """

    model: str
    served_by: str
    digest: str
    filled: Collection[str]
    is_ours: bool


@dataclass(frozen=True)
class TimedAnswer:
    """One answer. Times in seconds since sending.

    Attributes:
        num_left_out: Examples or passages that did not fit into the context.
    """

    id: str
    text: str
    calls: tuple[dict[str, Any], ...]
    num_prompt_tokens: int
    num_answer_tokens: int
    ttft_s: float
    e2e_s: float
    num_left_out: int


async def identify(client: AsyncOpenAI, model: str) -> IdentifiedModel:
    """Learn what answers, by one short question, which also warms the server up.

    Raises:
        EvaluationError: The server does not know the model, or does not answer.
    """
    try:
        card = await client.models.retrieve(model)
        created, extra = card.created, card.model_extra or {}
    except APIConnectionError as error:
        raise EvaluationError(_interrupted(client)) from error
    except APIError:
        created, extra = 0, {}
    try:
        response = await client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
        )
    except APIConnectionError as error:
        raise EvaluationError(_interrupted(client)) from error
    except APIError as error:
        raise EvaluationError(f"{model!r}: {error.message}") from error
    served_by = response.headers.get(NAME_HEADER)
    digest = response.headers.get(DIGEST_HEADER, BASE)
    return IdentifiedModel(
        model,
        served_by or model,
        str(created) if digest == BASE else digest,
        tuple(extra.get("defaults") or ()),
        served_by is not None,
    )


async def ask_timed(
    client: AsyncOpenAI,
    model: IdentifiedModel,
    questions: Sequence[Sequence[dict[str, Any]]],
    folder: Path,
    *,
    concurrency: int,
    on_answers: Callable[[int], None] = lambda count: None,
) -> list[TimedAnswer]:
    """The answer to each question; saved ones are not asked again.

    Args:
        questions: Requests by question: the next one is sent where the one before is refused, as too long.
        folder: Where answers are saved, a file for each version and concurrency.
        on_answers: Called with numbers of answers, in all one for each question.

    Raises:
        EvaluationError: A request failed; answers so far are saved.
    """
    saved = _SavedTimes(folder, model, concurrency)
    ids = [request_id(requests[0]) for requests in questions]
    on_answers(sum(own in saved.answers for own in ids))
    left = iter({own: q for own, q in zip(ids, questions, strict=True) if own not in saved.answers}.items())
    # What another way has asked must not be in the server's prefix cache: its prompts may be the same.
    salt = {"cache_salt": secrets.token_hex(8)} if model.is_ours else {}

    async def ask_one_after_the_other() -> None:
        for own, requests in left:
            saved.add(await _first_that_fits(client, own, requests, salt))
            on_answers(1)

    with one_error(repr(model.model), _interrupted(client)):
        async with asyncio.TaskGroup() as group:
            if len(saved.answers.keys() & set(ids)) < len(set(ids)):
                await _warm_up(client, questions[0][-1])
            for _ in range(concurrency):
                group.create_task(ask_one_after_the_other())
    return [saved.answers[own] for own in ids]


def _interrupted(client: AsyncOpenAI) -> str:
    return f"{client.base_url} does not answer any more. Run the command again to ask what is left; answers are saved."


async def _warm_up(client: AsyncOpenAI, request: dict[str, Any]) -> None:
    """Have the server do once what only a first request takes time for: load an adapter, compile a schema."""
    await client.chat.completions.create(**request | {"max_tokens": 1})


async def _first_that_fits(
    client: AsyncOpenAI, own_id: str, requests: Sequence[dict[str, Any]], salt: dict[str, Any]
) -> TimedAnswer:
    refused: BadRequestError | None = None
    for num_left_out, request in enumerate(requests):
        try:
            return await _streamed(client, own_id, request, salt, num_left_out)
        except BadRequestError as error:
            refused = refused or error
    assert refused is not None
    raise refused


async def _streamed(
    client: AsyncOpenAI, own_id: str, request: dict[str, Any], salt: dict[str, Any], num_left_out: int
) -> TimedAnswer:
    fields = request | {"extra_body": request.get("extra_body", {}) | salt, "stream_options": {"include_usage": True}}
    start = time.perf_counter()
    stream = await client.chat.completions.create(stream=True, **fields)
    ttft_s, text, usage = 0.0, "", None
    calls: dict[int, dict[str, Any]] = {}
    async for chunk in stream:
        usage = chunk.usage or usage
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        if delta.content or delta.tool_calls:
            ttft_s = ttft_s or time.perf_counter() - start
        text += delta.content or ""
        for part in delta.tool_calls or ():
            call = calls.setdefault(part.index, {"name": "", "arguments": ""})
            call["name"] += (part.function and part.function.name) or ""
            call["arguments"] += (part.function and part.function.arguments) or ""
    e2e_s = time.perf_counter() - start
    num_prompt, num_answer = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    found = tuple(calls[index] for index in sorted(calls))
    return TimedAnswer(
        own_id, text, found, num_prompt, num_answer, round(ttft_s or e2e_s, 4), round(e2e_s, 4), num_left_out
    )


class _SavedTimes:
    """The file of one version's answers at one concurrency."""

    def __init__(self, folder: Path, model: IdentifiedModel, concurrency: int) -> None:
        self._lines = AnswerLines(folder, model.served_by, model.digest, f"-{concurrency}")
        self.answers = {answer.id: answer for answer in read_lines(self._lines.path, _parse_answer)}

    def add(self, answer: TimedAnswer) -> None:
        self.answers[answer.id] = answer
        self._lines.append(asdict(answer))


def _parse_answer(fields: Any) -> TimedAnswer:
    return TimedAnswer(**{**fields, "calls": tuple(fields["calls"])})
