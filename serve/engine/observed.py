"""vLLM's asynchronous engine, observed: every generation of every endpoint passes `generate`, so it is seen here."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from serve.records import GenerationObserver, GenerationRecord, Outcome, current_request


class ObservedAsyncLLM(AsyncLLM):
    """`AsyncLLM` that tells an observer of each generation; set `observer` before the first request."""

    observer: GenerationObserver

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        watch = _Watch(lora_request.lora_name if lora_request else None)
        self.observer.generation_started(watch.lora_name)
        outcome: Outcome = "error"
        try:
            stream = super().generate(prompt, sampling_params, request_id, lora_request=lora_request, **kwargs)
            async with aclosing(stream):
                async for output in stream:
                    watch.see(output)
                    yield output
            outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            self.observer.generation_finished(watch.record(outcome))


class _Watch:
    """Collects one generation's figures from its outputs, whether they come whole or in deltas."""

    def __init__(self, lora_name: str | None) -> None:
        self.lora_name = lora_name
        self._context = current_request.get()
        self._start = time.perf_counter()
        self._last: RequestOutput | None = None
        self._ttft_s: float | None = None
        self._texts: dict[int, str] = {}
        self._num_tokens: dict[int, int] = {}
        self._finish_reasons: dict[int, str] = {}

    def see(self, output: RequestOutput) -> None:
        if self._ttft_s is None:
            self._ttft_s = time.perf_counter() - self._start
        self._last = output
        for choice in output.outputs:
            self._texts[choice.index] = self._texts.get(choice.index, "") + choice.text
            self._num_tokens[choice.index] = self._num_tokens.get(choice.index, 0) + len(choice.token_ids)
            if choice.finish_reason:
                self._finish_reasons[choice.index] = choice.finish_reason

    def record(self, outcome: Outcome) -> GenerationRecord:
        last = self._last
        num_prompt_tokens = len(last.prompt_token_ids or ()) if last else 0
        if self._context is not None:
            self._context.num_tokens += num_prompt_tokens + sum(self._num_tokens.values())
        stats: Any = last.metrics if last else None
        return GenerationRecord(
            lora_name=self.lora_name,
            outcome=outcome,
            queue_s=stats.scheduled_ts - stats.queued_ts if stats and stats.scheduled_ts else None,
            # A whole answer comes in one output, so only the engine knows when its first token was ready.
            ttft_s=stats.first_token_latency if stats and stats.first_token_latency else self._ttft_s,
            tpot_s=_mean_gap_s(stats),
            e2e_s=time.perf_counter() - self._start,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=(last.num_cached_tokens or 0) if last else 0,
            num_completion_tokens=sum(self._num_tokens.values()),
            finish_reasons=tuple(self._finish_reasons.values()),
            texts=tuple(self._texts.values()),
        )


def _mean_gap_s(stats: Any) -> float | None:
    """Mean seconds between output tokens after the first one."""
    if stats is None or stats.num_generation_tokens < 2:
        return None
    gap: float = (stats.last_token_ts - stats.first_token_ts) / (stats.num_generation_tokens - 1)
    return gap
