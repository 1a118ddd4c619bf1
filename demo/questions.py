"""Concurrent questions to the base and every adapter, so that one vLLM batch mixes them."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from config.dataset import DatasetRow


@dataclass(frozen=True)
class Question:
    model: str
    row: DatasetRow
    is_streamed: bool


@dataclass(frozen=True)
class DemoReply:
    """The answer. `started_s` and `ended_s` are seconds since the first question was sent."""

    question: Question
    served_by: str
    text: str
    started_s: float
    ended_s: float


async def ask_together(client: AsyncOpenAI, questions: Sequence[Question]) -> list[DemoReply]:
    """Send all questions at once; half of them streamed."""
    zero = time.perf_counter()
    return list(await asyncio.gather(*(_ask(client, question, zero) for question in questions)))


def arguments_of(question: Question) -> dict[str, Any]:
    """Of a chat completion."""
    return {
        "model": question.model,
        "messages": [message.for_request() for message in question.row.prompt],
        "temperature": 0.0,
        "max_tokens": 32,
        "stop": ["}"],
        "extra_body": {"include_stop_str_in_output": True},
    }


async def _ask(client: AsyncOpenAI, question: Question, zero: float) -> DemoReply:
    started_s, arguments = time.perf_counter() - zero, arguments_of(question)
    if question.is_streamed:
        served_by, text = question.model, ""
        async for chunk in await client.chat.completions.create(stream=True, **arguments):
            served_by = chunk.model
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    else:
        completion = await client.chat.completions.create(**arguments)
        served_by, text = completion.model, completion.choices[0].message.content or ""
    return DemoReply(question, served_by, text, started_s, time.perf_counter() - zero)
