"""vLLM's asynchronous engine, observed: every generation of every endpoint passes `generate`, so it is seen here."""

import asyncio
import copy
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar

from vllm.exceptions import GenerationError
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.engine.output_processor import RequestState

from serve.engine.calls import EngineCall, current_call
from serve.engine.errors import engine_is_dead
from serve.engine.finite import NOT_FINITE
from serve.engine.grammars import Grammar, GrammarChecks
from serve.engine.masks import GRAMMAR_TOO_COSTLY
from serve.engine.prepended import PrependingAsyncLLM
from serve.engine.structured import grammar_of
from serve.engine.withheld import OBSERVER_MARK
from serve.errors import GrammarError, ServeError, not_finite_error
from serve.records import GenerationObserver, GenerationOutcome, GenerationRecord

ErrorT = TypeVar("ErrorT", bound=ServeError)


class NotFiniteGenerationError(GenerationError):
    """The engine ended a generation because its logits were not finite; `error` is what the client is told."""

    def __init__(self, lora_name: str | None) -> None:
        self.error = not_finite_error(lora_name)
        super().__init__(str(self.error))


class ObservedAsyncLLM(PrependingAsyncLLM):
    """`AsyncLLM` that tells an observer of each generation; set `observer` and `grammars` before the first request.

    `logprob_rate` is the share of the generations, drawn by `draw`, that get log-probabilities for the observer alone.
    """

    observer: GenerationObserver
    grammars: GrammarChecks
    logprob_rate: float = 0.0
    draw: Callable[[], float] = staticmethod(random.random)

    @cached_property
    def _states(self) -> dict[str, Sequence[RequestState]]:
        """What vLLM knows of each generation that was begun: of one that is aborted it says no more itself."""
        return {}

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Raises InvalidRequestError, before anything is sent, where virtual tokens leave no room for an answer."""
        if self.num_virtual(lora_request):
            self.room(prompt, sampling_params, lora_request)
        outputs = sampling_params.structured_outputs
        grammar = grammar_of(outputs) if outputs is not None else None
        call = current_call()
        if grammar is not None:
            call.grammars.append(grammar)
        generation = self._generate(
            prompt, sampling_params, request_id, grammar, call, lora_request=lora_request, **kwargs
        )
        call.generations.add(generation)
        return generation

    async def _generate(
        self,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        grammar: Grammar | None,
        call: EngineCall,
        *,
        lora_request: Any = None,
        **kwargs: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        if grammar is not None:
            await self.grammars.check(grammar, call.caller.tenant or "")
        name = lora_request.lora_name if lora_request else None
        watch = _Watch(name, call, self.num_virtual(lora_request), request_id)
        with call.generations.running():
            self.observer.generation_started(watch.lora_name, call.caller.source)
            outcome: GenerationOutcome = "error"
            if self.draw() < self.logprob_rate:
                sampling_params = with_logprobs(sampling_params)
            self._states[request_id] = ()
            try:
                stream = super().generate(prompt, sampling_params, request_id, lora_request=lora_request, **kwargs)
                async with aclosing(stream):
                    async for output in stream:
                        watch.see(output)
                        if not watch.is_finite:
                            raise NotFiniteGenerationError(watch.lora_name)
                        if any(choice.stop_reason == GRAMMAR_TOO_COSTLY for choice in output.outputs):
                            raise watch.failed(_grammar_error())
                        yield output
                outcome = "ok"
            except (asyncio.CancelledError, GeneratorExit):
                outcome = "cancelled"
                raise
            except EngineDeadError:
                outcome = "lost"
                watch.failed(engine_is_dead())
                raise
            finally:
                watch.states = self._states.pop(request_id, ())
                self.observer.generation_finished(watch.record(outcome))

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        states = self.output_processor.request_states
        ids = self.output_processor.external_req_ids.get(request_id, ())
        found = tuple(states[internal_id] for internal_id in ids if internal_id in states)
        if request_id in self._states:  # a replay's is not: nobody is charged for it
            self._states[request_id] = found
        self._collect_logprobs(found)
        return queue

    @staticmethod
    def _collect_logprobs(states: Iterable[RequestState]) -> None:
        """Those of an answer that shows none: as numbers, for vLLM would turn each token to text once more."""
        for state in states:
            processor = state.logprobs_processor
            if processor is not None and isinstance(processor.logprobs, FlatLogprobs):
                state.logprobs_processor = Collecting(
                    tokenizer=None,
                    cumulative_logprob=0.0,
                    logprobs=Undelivered(),
                    prompt_logprobs=None,
                    num_logprobs=0,
                    num_prompt_logprobs=None,
                )


def with_logprobs(sampling_params: SamplingParams) -> SamplingParams:
    """The same sampling, and the log-probability of each sampled token; as it is where the client asks for some.

    A copy: vLLM's serving classes go on using theirs (`/v1/responses` reports its `logprobs`). They show
    log-probabilities only where the client's *request* asks for them, so that the answer stays what it was.
    """
    if sampling_params.num_logprobs is not None:
        return sampling_params
    drawn = copy.copy(sampling_params)
    drawn.logprobs = 0  # of the sampled token, and of no other candidate
    if drawn.prompt_logprobs is None:  # those would come flat, too, and are shown
        drawn.flat_logprobs = True
        drawn.extra_args = {**(drawn.extra_args or {}), OBSERVER_MARK: True}
    return drawn


class Undelivered(FlatLogprobs):
    """Any slice is what no slice had before: the pieces of a stream carry what came meanwhile (withheld.py)."""

    def __init__(self) -> None:
        super().__init__()
        self._num_delivered = 0

    def __bool__(self) -> bool:
        """vLLM hands out the whole, not a slice, of what is false."""
        return True

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, int):
            return super().__getitem__(index)
        first, self._num_delivered = self._num_delivered, len(self)
        return super().__getitem__(slice(first, self._num_delivered))


class Collecting(LogprobsProcessor):
    """Takes over those of many tokens at once (withheld.py); vLLM's own takes a dozen steps a token."""

    def update_from_output(self, output: EngineCoreOutput) -> None:
        lists, collected = output.new_logprobs, self.logprobs
        if lists is None or not isinstance(collected, FlatLogprobs):
            return
        first, num = len(collected.logprobs), len(lists.logprobs)
        collected.start_indices.extend(range(first, first + num))
        collected.end_indices.extend(range(first + 1, first + num + 1))
        collected.token_ids.extend(lists.logprob_token_ids[:, 0].tolist())
        collected.logprobs.extend(lists.logprobs[:, 0].tolist())
        collected.ranks.extend([None] * num)
        collected.decoded_tokens.extend([None] * num)


class _Watch:
    """Collects one generation's figures from its outputs, whether they come whole or in deltas."""

    def __init__(
        self, lora_name: str | None, call: EngineCall, num_virtual: int = 0, engine_id: str | None = None
    ) -> None:
        self.lora_name = lora_name
        self._engine_id = engine_id
        self._num_virtual = num_virtual
        self._call = call
        self._start_s = time.perf_counter()
        # What the client has waited for before: a turn, a load. The engine's own clock starts here.
        started_s = call.caller.started_s
        self._waited_s = 0.0 if started_s is None else self._start_s - started_s
        self._last: RequestOutput | None = None
        self._last_s = self._start_s
        self._gaps_s: list[float] = []
        self._texts: dict[int, str] = {}
        self._num_tokens: dict[int, int] = {}
        self._finish_reasons: dict[int, str] = {}
        self._token_ids: list[int] = []
        self._token_logprobs: list[float] = []
        self.is_finite = True
        self.states: Sequence[RequestState] = ()

    def see(self, output: RequestOutput) -> None:
        now_s = time.perf_counter()
        self._gaps_s.append(now_s - self._last_s)
        self._last, self._last_s = output, now_s
        for choice in output.outputs:
            self._texts[choice.index] = self._texts.get(choice.index, "") + choice.text
            self._num_tokens[choice.index] = self._num_tokens.get(choice.index, 0) + len(choice.token_ids)
            if choice.finish_reason:
                self._finish_reasons[choice.index] = choice.finish_reason
                if choice.stop_reason == NOT_FINITE:
                    self._fail()
            if choice.index == 0:
                self._token_ids.extend(choice.token_ids)
                self._token_logprobs.extend(_token_logprobs(choice))

    def _fail(self) -> None:
        self.is_finite = False
        self.failed(not_finite_error(self.lora_name))

    def failed(self, error: ErrorT) -> ErrorT:
        """The error, of which the call knows from now on: vLLM's streams give it in words of their own."""
        self._call.failure = error
        return error

    def record(self, outcome: GenerationOutcome) -> GenerationRecord:
        last, caller = self._last, self._call.caller
        stats: Any = last.metrics if last else None
        record = GenerationRecord(
            lora_name=self.lora_name,
            source=caller.source,
            tenant=caller.tenant,
            request_id=caller.request_id,
            outcome=outcome,
            queue_s=_between_s(stats, "queued_ts", "scheduled_ts"),
            prefill_s=_between_s(stats, "scheduled_ts", "first_token_ts"),
            decode_s=_between_s(stats, "first_token_ts", "last_token_ts"),
            ttft_s=self._ttft_s(stats),
            tpot_s=_mean_gap_s(stats),
            # With several choices, pieces come in turn: a gap between two of them is no client's gap.
            itl_s=tuple(self._gaps_s[1:]) if len(self._texts) == 1 else (),
            e2e_s=self._waited_s + time.perf_counter() - self._start_s,
            num_prompt_tokens=self._num_prompt_tokens(),
            num_cached_tokens=(last.num_cached_tokens or 0) if last else 0,
            num_completion_tokens=self._num_completion_tokens(),
            finish_reasons=_in_order(self._finish_reasons),
            prompt_text=(last.prompt or "") if last else "",
            prompt_token_ids=tuple(last.prompt_token_ids or ()) if last else (),
            texts=_in_order(self._texts),
            token_ids=tuple(self._token_ids),
            token_logprobs=tuple(self._token_logprobs),
            is_finite=self.is_finite,
            messages=self._call.messages,
            response_id=_response_id(self._engine_id),
        )
        self._call.result.add(record)
        return record

    def _num_prompt_tokens(self) -> int:
        if self._last is not None:
            return len(self._last.prompt_token_ids or ())
        return max((state.prompt_len - self._num_virtual for state in self.states), default=0)

    def _num_completion_tokens(self) -> int:
        """What the engine has made; whoever left has seen less of it, and of an answer in one piece nothing."""
        num_made = sum(state.detokenizer.num_output_tokens() for state in self.states if state.detokenizer)
        return max(num_made, sum(self._num_tokens.values()))

    def _ttft_s(self, stats: Any) -> float | None:
        """A whole answer comes in one output, so only the engine knows when its first token was ready."""
        if stats and stats.first_token_latency:
            return self._waited_s + float(stats.first_token_latency)
        return self._waited_s + self._gaps_s[0] if self._gaps_s else None


def _response_id(engine_id: str | None) -> str | None:
    """`id` of the answer that a generation belongs to: vLLM numbers the generations of one answer after it."""
    if engine_id is None:
        return None
    endings = {"cmpl-": "-0", "resp_": "_0"}
    return engine_id.removesuffix(endings.get(engine_id[:5], ""))


def _grammar_error() -> GrammarError:
    return GrammarError("The schema or grammar of this request costs too much time a token: the answer was ended.")


def _in_order(choices: Mapping[int, str]) -> tuple[str, ...]:
    """By the choices' numbers; they begin and end in any order."""
    return tuple(choices[index] for index in sorted(choices))


def _token_logprobs(choice: CompletionOutput) -> Iterable[float]:
    """Of the sampled tokens, in their order."""
    if isinstance(choice.logprobs, FlatLogprobs):
        return choice.logprobs.logprobs  # only `with_logprobs` makes them, with one candidate per token
    positions = zip(choice.token_ids, choice.logprobs or (), strict=False)
    return [position[token].logprob for token, position in positions if token in position]


def _between_s(stats: Any, start: str, end: str) -> float | None:
    """Seconds between two of the engine's marks; None where it did not reach the second."""
    if stats is None or not getattr(stats, end):
        return None
    seconds: float = getattr(stats, end) - getattr(stats, start)
    return seconds


def _mean_gap_s(stats: Any) -> float | None:
    """Mean seconds between output tokens after the first one."""
    if stats is None or stats.num_generation_tokens < 2:
        return None
    gap: float = (stats.last_token_ts - stats.first_token_ts) / (stats.num_generation_tokens - 1)
    return gap
