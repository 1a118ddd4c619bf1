"""`VllmEngine`: vLLM's asynchronous engine and its OpenAI serving classes behind our `Engine` protocol."""

import asyncio
import gc
import logging
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from starlette.datastructures import State
from starlette.requests import Request
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.exceptions import EngineDeadError

from adapters.lint.peft_folder import DORA_FILE
from adapters.reference import Target
from adapters.template_time import strftime_at
from config.serve import ServeConfig
from serve.engine.arguments import server_arguments
from serve.engine.calls import EngineCall
from serve.engine.conversation import text_turns
from serve.engine.cpu.forks import kill_forked_processes
from serve.engine.cpu.int8 import int8_base
from serve.engine.cpu.prequantized import check_int8, check_kernel
from serve.engine.cpu.threads import set_cpu_environment
from serve.engine.errors import engine_is_dead, engine_request_error, errors_in_our_words, refused_configurations
from serve.engine.finite import NOT_FINITE
from serve.engine.grammars import GrammarChecks
from serve.engine.loading.staged_cache import StagedCache
from serve.engine.loading.staging import LayerShape, Layout, Stager
from serve.engine.observed import NotFiniteGenerationError, ObservedAsyncLLM
from serve.engine.plugin import CPU_LORA_VARIABLE, ENGINE_VARIABLE, install_all
from serve.engine.prepended import PrependingAsyncLLM
from serve.engine.protocol import Answer, Endpoint, EngineAdapters
from serve.engine.replace import skipped
from serve.engine.requests import parse_request
from serve.engine.series import drop_lora_series, patches_skipped
from serve.engine.slots import SLOT_TURN_VARIABLE
from serve.engine.soft_prompts import num_virtual_tokens
from serve.engine.stall import StallWatch, StepCounter
from serve.engine.streams import server_sent_events
from serve.engine.structured import tokenizer_json
from serve.errors import (
    AdapterRefusedError,
    NotReadyError,
    ServeError,
    not_finite_error,
)
from serve.records import Caller, GenerationObserver, RequestResult

logger = logging.getLogger(__name__)

_DEATH_POLL_S = 0.2
_NO_DORA = (
    "it is DoRA, and has a layer whose output is not rescaled here (docs/adapters.md). Merge it into its base: "
    "`lorikeet export merge`."
)


def served_base(config: ServeConfig, base_folder: Path, int8_bases: Path) -> Path:
    """What the engine loads: the prepared base, or on a CPU what `cpu_base` makes of it.

    Raises:
        InvalidBaseError: It cannot be served in int8, or not on a CPU.
    """
    if current_platform.is_cpu():
        check_kernel(base_folder)
    if config.cpu_base != "int8" or not current_platform.is_cpu():
        return base_folder
    check_int8(base_folder.name, "Set cpu_base: bfloat16")
    return int8_base(base_folder, int8_bases)


class VllmEngine:
    """One vLLM engine; see `serve.engine.protocol.Engine`.

    Args:
        base_folder: What `served_base` says.
        staged: Where versions are kept in the engine's own layout.
    """

    def __init__(
        self, config: ServeConfig, base_folder: Path, observer: GenerationObserver, staged: Path | None = None
    ) -> None:
        self._config = config
        self._base_folder = base_folder
        self._observer = observer
        self._staged = staged
        self._llm: ObservedAsyncLLM | None = None
        self._stager: Stager | None = None
        self._serving = State()
        self._steps = StepCounter()
        self._is_stalled = False
        self._logprob_rate = 0.0
        self._lora_ids = count(1)
        self._replay_ids = count(1)

    @property
    def is_ready(self) -> bool:
        if self._llm is None or self._is_stalled:
            return False
        return hasattr(self._serving, "openai_serving_chat") and not self._llm.errored

    @property
    def kv_tokens(self) -> int | None:
        # vLLM's engine process tells it when it has started (0.32, v1/engine/core_client.py).
        return getattr(self._llm.vllm_config.cache_config, "kv_cache_size_tokens", None) if self._llm else None

    @property
    def logprob_rate(self) -> float:
        return self._logprob_rate

    @logprob_rate.setter
    def logprob_rate(self, rate: float) -> None:
        self._logprob_rate = rate
        if self._llm is not None:
            self._llm.logprob_rate = rate

    @property
    def resident(self) -> AbstractSet[str]:
        return self._adapters.keys()

    async def start(self) -> None:
        os.environ[SLOT_TURN_VARIABLE] = str(self._config.slot_turn_s or "")
        if current_platform.is_cpu():
            set_cpu_environment()
            os.environ[CPU_LORA_VARIABLE] = self._config.cpu_lora
        install_all()
        patches_skipped.set(len(skipped()))
        arguments = server_arguments(self._config, self._base_folder)
        self._is_stalled = False
        self._llm = await asyncio.to_thread(_build, arguments, self._steps)
        drop_lora_series(self._llm.logger_manager.stat_loggers if self._llm.logger_manager else [])
        self._llm.observer = self._observer
        self._llm.logprob_rate = self._logprob_rate
        tokenizer = tokenizer_json(self._llm.vllm_config, self._llm.get_tokenizer())
        self._llm.grammars = GrammarChecks(tokenizer, self._config.limits.grammar_timeout_s)
        self._llm.grammars.start()
        tasks = await self._llm.get_supported_tasks()
        await init_app_state(self._llm, self._serving, arguments, tasks)
        if products := (await self._llm.collective_rpc("lorikeet_products"))[0]:
            logger.info("Linear layers, times vLLM's own speed: %s", products)
        layout = (await self._llm.collective_rpc("lorikeet_layout"))[0]
        if layout:
            form, layers = layout
            self._stager = self._make_stager(Layout(tuple(LayerShape(*fields) for fields in layers), form))
        # Some 700,000 objects are there to stay: to look through them stops the event loop for 0.7 s.
        freeze_gc_heap()

    def _make_stager(self, layout: Layout) -> Stager:
        most_bytes = self._config.staged_cache_bytes
        if self._staged is None or not most_bytes:
            return Stager(layout)
        try:
            return Stager(layout, StagedCache(self._staged, most_bytes, layout.sha256))
        except OSError as error:  # as a folder that cannot be written: loads are slower without it
            logger.warning("Adapters are packed anew at each load: %s", error)
            return Stager(layout)

    async def stop(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            self._serving = State()
            gc.unfreeze()
            if hasattr(llm, "grammars"):
                await llm.grammars.stop()
            await asyncio.to_thread(llm.shutdown)
        await asyncio.to_thread(kill_forked_processes)
        if self._stager is not None:
            stager, self._stager = self._stager, None
            await asyncio.to_thread(stager.close)

    async def wait_until_dead(self) -> None:
        # vLLM has a flag for it, and nothing to wait on; an engine that hangs sets none.
        watch, last_s = StallWatch(self._config.engine_stall_timeout_s), time.monotonic()
        while self._llm is not None and not self._llm.errored and not self._is_stalled:
            await asyncio.sleep(_DEATH_POLL_S)
            elapsed_s, last_s = time.monotonic() - last_s, time.monotonic()
            if self._llm and watch.is_stalled(self._steps.num_steps, _num_waiting(self._llm), elapsed_s):
                logger.error(
                    "The engine has made no step for %g s while %d requests wait: it is ended.",
                    self._config.engine_stall_timeout_s,
                    _num_waiting(self._llm),
                )
                self._is_stalled = True
        if self._llm is not None:
            _tell_all(self._llm)

    async def load(self, target: Target, folder: Path) -> str | None:
        llm = self._require_llm()
        await self.unload(target)  # as where it was to be removed, and that failed
        request = LoRARequest(str(target), next(self._lora_ids), str(folder))
        num_virtual = await asyncio.to_thread(num_virtual_tokens, folder)
        async with self._stager.staged(folder) if self._stager else nullcontext() as staged:
            source = staged.folder if staged else folder
            try:
                await llm.add_lora(LoRARequest(request.lora_name, request.lora_int_id, str(source)))
            except EngineDeadError:
                raise engine_is_dead() from None
            except Exception as error:  # vLLM raises bare exceptions of its worker here: boundary
                is_dora = staged is None and (folder / DORA_FILE).exists()
                reason = _NO_DORA if is_dora else create_error_response(error).error.message
                raise AdapterRefusedError(f"vLLM cannot load {str(target)!r}: {reason}") from error
        if self._llm is not llm:
            raise engine_is_dead()
        llm.virtual_tokens[str(target)] = num_virtual
        self._adapters[str(target)] = request
        return staged.digest if staged else None

    async def unload(self, target: Target) -> None:
        llm, adapters = self._require_llm(), self._adapters
        request = adapters.get(str(target))
        if request is not None:
            with errors_in_our_words():
                await llm.remove_lora(request.lora_int_id)
            adapters.pop(str(target), None)
            llm.virtual_tokens.pop(str(target), None)

    async def pin(self, target: Target) -> None:
        with errors_in_our_words():
            await self._require_llm().pin_lora(self._request_of(target).lora_int_id)

    async def unpin(self, target: Target) -> None:
        with errors_in_our_words():
            lora_int_id = self._request_of(target).lora_int_id
            await self._require_llm().collective_rpc("lorikeet_unpin", args=(lora_int_id,))

    async def adapters(self) -> EngineAdapters:
        with errors_in_our_words():
            # All workers hold the same adapters: each has its part of every one.
            slots, host = (await self._require_llm().collective_rpc("lorikeet_adapters"))[0]
        names = {request.lora_int_id: name for name, request in self._adapters.items()}
        return EngineAdapters(
            tuple(names.get(number) for number in slots), frozenset(names[number] for number in host if number in names)
        )

    def render(
        self, messages: Sequence[dict[str, Any]], at: datetime | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        tokenizer: Any = self._require_llm().get_tokenizer()
        extra: dict[str, Any] = {} if at is None else {"strftime_now": strftime_at(at)}
        if tools:
            extra["tools"] = list(tools)
        token_ids: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **extra
        )
        return token_ids

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        # `prompt_logprobs=0`: of each prompt token itself, and of no other candidate.
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        # Without the observer's own method: a replay must not count as a client's request in the metrics.
        stream = PrependingAsyncLLM.generate(
            self._require_llm(),
            tokens_input(list(token_ids)),
            sampling,
            f"replay-{next(self._replay_ids)}",
            lora_request=self._request_of(target) if target else None,
        )
        with errors_in_our_words():
            outputs = [output async for output in stream]
            if outputs[-1].outputs[0].stop_reason == NOT_FINITE:
                raise not_finite_error(str(target) if target else None)
            # Of what the engine has aborted there are too few: that is an error, too.
            positions = outputs[-1].prompt_logprobs or []
            pairs = zip(token_ids[1:], positions[1:], strict=True)
            return [position[token].logprob for token, position in pairs if position is not None]

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        self._require_llm()
        call = EngineCall(caller, RequestResult() if result is None else result, text_turns(endpoint, body))
        try:
            answered = await self._begin(endpoint, body, call)
        except BaseException:  # also of a client that left: its tokens are counted, and its places free, after this
            await call.generations.aclose()
            raise
        if hasattr(answered, "model_dump"):
            return Answer(answered.model_dump(mode="json", by_alias=True))
        return Answer(server_sent_events(answered, call))

    async def _begin(self, endpoint: Endpoint, body: dict[str, Any], call: EngineCall) -> Any:
        """vLLM's whole answer, or its stream. Raises as `answer` does."""
        try:
            answered = await self._checked(endpoint, parse_request(endpoint, body), call)
        except ServeError:
            raise
        except EngineDeadError:
            raise engine_is_dead() from None
        except NotFiniteGenerationError as error:
            raise error.error from None
        # The classes that vLLM's own server (0.32, `init_exception_handler`) handles beside bare exceptions, with the
        # status of its `create_error_response`: 4xx, or 500 and 503 for VLLMServerError. All else is a defect.
        except (VLLMError, ValueError, TypeError, NotImplementedError, OverflowError) as error:
            raise engine_request_error(create_error_response(error)) from error
        if isinstance(answered, ErrorResponse):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # vLLM's serving classes (0.32) turn a cancellation into the error "Client disconnected"; the cancelled
                # task would continue.
                raise asyncio.CancelledError
            raise engine_request_error(answered)
        return answered

    async def _checked(self, endpoint: Endpoint, parsed: Any, call: EngineCall) -> Any:
        """The answer, or a stream of which nothing was sent and whose grammars are known to be good."""
        with call.as_current():
            answered = await self._create(endpoint, parsed)
        if not hasattr(answered, "model_dump"):
            for grammar in tuple(call.grammars):
                await self._require_llm().grammars.check(grammar, call.caller.tenant or "")
        return answered

    async def _create(self, endpoint: Endpoint, parsed: Any) -> Any:
        # Without the client's headers: vLLM would take a priority, a request id or a data-parallel rank from them.
        request = Request({"type": "http", "method": "POST", "path": f"/v1/{endpoint}", "headers": []})
        if endpoint == "chat/completions":
            return await self._serving.openai_serving_chat.create_chat_completion(parsed, request)
        if endpoint == "completions":
            return await self._serving.openai_serving_completion.create_completion(parsed, request)
        parsed.store = False  # whatever the environment says: vLLM's store has no bound
        parsed.previous_response_id = None  # where it is empty, which names none
        return await self._serving.openai_serving_responses.create_responses(parsed, request)

    def _request_of(self, target: Target) -> LoRARequest:
        request = self._adapters.get(str(target))
        if request is None:  # as after a new start, for who asked before
            raise NotReadyError(f"{str(target)!r} is not in the engine now; try again in a minute.")
        return request

    @property
    def _adapters(self) -> dict[str, LoRARequest]:
        """The list by which vLLM's serving classes find an adapter; we alone change it."""
        models = getattr(self._serving, "openai_serving_models", None)
        adapters: dict[str, LoRARequest] = models.lora_requests if models else {}
        return adapters

    def _require_llm(self) -> ObservedAsyncLLM:
        if self._llm is None or not self.is_ready:
            raise NotReadyError("The server is starting. Poll GET /ready, or retry in a minute.")
        return self._llm


def _build(arguments: Namespace, steps: StepCounter) -> ObservedAsyncLLM:
    """Start the engine's processes and load the base; blocks for as long as that takes.

    Raises:
        EngineStartError: vLLM refuses the base or the settings before any process starts.
    """
    os.environ[ENGINE_VARIABLE] = "1"  # they inherit it; what else runs vLLM beside them does not
    try:
        engine_args = AsyncEngineArgs.from_cli_args(arguments)
        with refused_configurations():
            vllm_config = engine_args.create_engine_config()
        llm = ObservedAsyncLLM.from_vllm_config(vllm_config, stat_loggers=[lambda config, index: steps])
    finally:
        del os.environ[ENGINE_VARIABLE]
    assert isinstance(llm, ObservedAsyncLLM)
    return llm


def _num_waiting(llm: ObservedAsyncLLM) -> int:
    """Requests, and calls as that to load an adapter."""
    return llm.get_num_unfinished_requests() + len(_replies(llm))


def _replies(llm: ObservedAsyncLLM) -> list[Any]:
    """What the engine has not answered yet, beside requests (vLLM 0.32: `AsyncMPClient`)."""
    return list(getattr(llm.engine_core, "utility_results", {}).values())


def _tell_all(llm: ObservedAsyncLLM) -> None:
    """That the engine is dead or given up: vLLM (0.32) leaves calls such as that to load an adapter waiting."""
    llm.output_processor.propagate_error(EngineDeadError())
    for reply in _replies(llm):
        if not reply.done():
            reply.set_exception(EngineDeadError())
