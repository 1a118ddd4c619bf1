"""Quality through the endpoint: send a held-out split to a live server and score the answers.

Fields with request defaults are left out, so a version of ours gets only `model` and the user turn, as from a minimal
client. The base model has no such defaults and gets the domain's system prompt and settings.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIError, AsyncOpenAI

from adapters.scores import Score, score_of
from config.dataset import DatasetManifest, DatasetRow, Message, few_shot_messages, read_dataset, read_split
from quality.scorers import AnswerFormat, is_exact_match


@dataclass(frozen=True)
class LiveAnswer:
    """One answer as received by a client. Times in seconds since sending."""

    input: str
    expected: str
    text: str
    served_by: str
    ttft_s: float
    e2e_s: float
    num_tokens: int


@dataclass(frozen=True)
class LiveScore:
    """A model's scores and latencies on a held-out split, at the concurrency of the evaluation."""

    model: str
    served_by: str
    accuracy: Score
    valid_format: Score
    ttft_p50_s: float
    ttft_p99_s: float
    tokens_per_s: float
    seconds: float
    concurrency: int
    answers: tuple[LiveAnswer, ...]


class EvaluationError(Exception):
    """The server did not answer every question."""


async def evaluate_live(
    client: AsyncOpenAI,
    dataset_folder: Path,
    model: str,
    *,
    few_shot: bool = False,
    limit: int | None = None,
    concurrency: int = 16,
    on_answer: Callable[[], None] = lambda: None,
    is_enough: Callable[[Sequence[LiveAnswer]], bool] = lambda answers: False,
) -> LiveScore:
    """Send the rows of the test split in order, streaming, and score the answers.

    Args:
        few_shot: Put the data set's fixed examples before each question.
        limit: Number of rows to use; None: all.
        is_enough: Called with the answers so far, in row order without gaps; True stops sending. Requests in flight
        still count.

    Raises:
        DatasetError: The data set is missing or unreadable.
        EvaluationError: A request failed; no score is computed.
    """
    manifest, rows = read_dataset(dataset_folder), read_split(dataset_folder, "test")[:limit]
    filled = await filled_by_server(client, model)
    answers: dict[int, LiveAnswer] = {}
    rows_left = enumerate(rows)
    is_over = False

    async def ask_one_after_the_other() -> None:
        nonlocal is_over
        while not is_over and (numbered := next(rows_left, None)):
            number, row = numbered
            messages = few_shot_messages(manifest, row.input) if few_shot else row.prompt
            answers[number] = await _ask(client, request_arguments(model, messages, manifest, filled), row)
            on_answer()
            is_over = is_over or is_enough(_without_gap(answers))

    start = time.perf_counter()
    try:
        await asyncio.gather(*(ask_one_after_the_other() for _ in range(concurrency)))
    except APIConnectionError as error:
        is_over = True
        where = f"{client.base_url.host}:{client.base_url.port}"
        raise EvaluationError(
            f"{model!r} on {manifest.domain!r}: {where} does not answer. Start the server, or give its `--url`."
        ) from error
    except APIError as error:
        is_over = True
        raise EvaluationError(f"{model!r} on {manifest.domain!r}: {error.message}") from error
    return _score(manifest, model, _without_gap(answers), time.perf_counter() - start, concurrency)


def _without_gap(answers: Mapping[int, LiveAnswer]) -> list[LiveAnswer]:
    """The answers in row order up to the first missing one."""
    return [answers[number] for number in takewhile(answers.__contains__, range(len(answers)))]


def request_arguments(
    model: str, messages: Sequence[Message], manifest: DatasetManifest, filled: Collection[str]
) -> dict[str, Any]:
    """Request fields of one question, without those that the server fills in (`system`, `temperature`…).

    A system prompt of the question's own is sent, also an empty one.
    """
    turns = [turn.for_request() for turn in (without_system(manifest, messages) if "system" in filled else messages)]
    fields = {name: value for name, value in manifest.request_fields.items() if name not in filled}
    if "stop" in fields:
        # vLLM's own extension of the API: the closing brace that ends an answer stays in it.
        fields["extra_body"] = {"include_stop_str_in_output": True}
    return {"model": model, "messages": turns, **fields}


def without_system(manifest: DatasetManifest, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns without the domain's system prompt; a row's own one stays."""
    return tuple(turn for turn in messages if turn.role != "system" or turn.content != manifest.chat.system)


async def filled_by_server(client: AsyncOpenAI, model: str) -> Collection[str]:
    """Names of the model's request defaults from its model card; other servers list none."""
    try:
        card = await client.models.retrieve(model)
    except APIError:
        return ()  # if the model is not there, the first question says so
    shown = getattr(card, "model_extra", None) or {}  # invalid JSON arrives as text
    return shown.get("defaults") or ()


async def _ask(client: AsyncOpenAI, arguments: dict[str, Any], row: DatasetRow) -> LiveAnswer:
    start = time.perf_counter()
    streamed: dict[str, Any] = arguments | {"stream_options": {"include_usage": True}}
    stream = await client.chat.completions.create(stream=True, **streamed)
    ttft_s, text, num_tokens, served_by = 0.0, "", 0, arguments["model"]
    async for chunk in stream:
        served_by = chunk.model
        if chunk.choices and chunk.choices[0].delta.content:
            ttft_s = ttft_s or time.perf_counter() - start
            text += chunk.choices[0].delta.content
        if chunk.usage:
            num_tokens = chunk.usage.completion_tokens
    e2e_s = time.perf_counter() - start
    return LiveAnswer(row.input, row.output, text, served_by, ttft_s or e2e_s, e2e_s, num_tokens)


def _score(
    manifest: DatasetManifest, model: str, answers: Sequence[LiveAnswer], seconds: float, concurrency: int
) -> LiveScore:
    answer_format = AnswerFormat(manifest.answer.json_schema)
    num_right = sum(is_exact_match(answer.text, answer.expected) for answer in answers)
    num_valid = sum(answer_format.accepts(answer.text) for answer in answers)
    ttfts = sorted(answer.ttft_s for answer in answers)
    return LiveScore(
        model=model,
        served_by=answers[0].served_by,
        accuracy=score_of(num_right, len(answers)),
        valid_format=score_of(num_valid, len(answers)),
        ttft_p50_s=statistics.median(ttfts),
        ttft_p99_s=ttfts[int(0.99 * (len(ttfts) - 1))],
        tokens_per_s=sum(answer.num_tokens for answer in answers) / seconds,
        seconds=seconds,
        concurrency=concurrency,
        answers=tuple(answers),
    )
