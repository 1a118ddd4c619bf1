"""A hand-written engine: says what it was told to say, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.fingerprint import Fingerprint, GoldenPrompt
from adapters.reference import Target
from serve.engine.protocol import Answer, Endpoint, EngineAdapters
from serve.errors import AdapterRefusedError
from serve.records import Caller, RequestResult

PROMPT_IDS, ANSWER_IDS = (1, 2, 3), (4, 5)
BASE_LOGPROBS, ADAPTER_LOGPROBS = (-3.0, -4.0), (-0.5, -0.25)


def fingerprint(base_digest: str, template_sha256: str) -> Fingerprint:
    """What training would say of an adapter that `FakeEngine` serves rightly."""
    prompt = GoldenPrompt(
        messages=({"role": "user", "content": "Angina"},),
        prompt_token_ids=PROMPT_IDS,
        answer_token_ids=ANSWER_IDS,
        adapter_logprobs=ADAPTER_LOGPROBS,
        base_logprobs=BASE_LOGPROBS,
    )
    return Fingerprint(
        base_digest=base_digest,
        chat_template_sha256=template_sha256,
        stop_token_ids=(5,),
        modules=("model.layers.0.self_attn.q_proj",),
        prompts=(prompt,),
    )


class FakeEngine:
    """An `Engine` without a model."""

    def __init__(self) -> None:
        self.is_ready = True
        self.kv_tokens: int | None = None
        self.logprob_rate = 0.0
        self.loads: list[str] = []
        self.resident: set[str] = set()
        self.most_resident = 0
        self.loaded_digest: str | None = None
        self.replays = 0
        self.pinned: set[str] = set()
        self.callers: list[Caller] = []
        self.died = asyncio.Event()
        self.starts = 0
        self.start_errors: list[Exception] = []
        self.bodies: list[dict[str, Any]] = []
        self.rendered = PROMPT_IDS
        self.adapter_logprobs, self.base_logprobs = ADAPTER_LOGPROBS, BASE_LOGPROBS
        self.load_error: str | None = None
        self.answering = asyncio.Event()
        self.was_cancelled = False
        self.never_answers = False
        self.failure: Exception | None = None
        self.say: Callable[[dict[str, Any]], str] | None = None

    async def start(self) -> None:
        self.starts += 1
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.is_ready = True

    async def stop(self) -> None:
        self.is_ready = False
        self.resident.clear()
        self.pinned.clear()

    async def wait_until_dead(self) -> None:
        await self.died.wait()
        self.died.clear()
        self.is_ready = False

    async def load(self, target: Target, folder: Path) -> str | None:
        self.loads.append(str(target))
        await asyncio.sleep(0)
        if self.load_error:
            raise AdapterRefusedError(self.load_error)
        self.resident.add(str(target))
        self.most_resident = max(self.most_resident, len(self.resident))
        return self.loaded_digest

    async def unload(self, target: Target) -> None:
        self.resident.discard(str(target))

    async def pin(self, target: Target) -> None:
        self.pinned.add(str(target))

    async def unpin(self, target: Target) -> None:
        self.pinned.discard(str(target))

    async def adapters(self) -> EngineAdapters:
        return EngineAdapters(tuple(sorted(self.resident))[:2], frozenset(self.resident))

    def render(
        self, messages: Sequence[dict[str, Any]], at: datetime | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        return list(self.rendered)

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        self.replays += 1
        return [-9.0, -9.0, *(self.base_logprobs if target is None else self.adapter_logprobs)]

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        self.bodies.append(body)
        self.callers.append(caller)
        self.answering.set()
        if self.never_answers:
            await self._wait_for_ever()
        if body.get("stream"):
            return Answer(self._stream(body["model"]))
        if self.failure is not None:
            raise self.failure
        choices = {} if self.say is None else {"choices": [{"message": {"content": self.say(body)}}]}
        return Answer({"model": body["model"], "endpoint": endpoint} | choices)

    async def _wait_for_ever(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    async def _stream(self, model: str) -> AsyncGenerator[str, None]:
        yield f'data: {{"model": "{model}"}}\n\n'
        if self.failure is not None:
            raise self.failure
        yield "data: [DONE]\n\n"
