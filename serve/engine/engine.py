"""`VllmEngine`: vLLM's asynchronous engine and its OpenAI serving classes behind our `Engine` protocol."""

import asyncio
import logging
from argparse import Namespace
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import State
from starlette.requests import Request
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from adapters.reference import Target
from config.schema import ServeConfig
from serve.engine.arguments import server_arguments
from serve.engine.cpu import set_cpu_environment
from serve.engine.observed import ObservedAsyncLLM
from serve.engine.protocol import Answer, Endpoint
from serve.engine.streams import server_sent_events
from serve.errors import AdapterRefusedError, EngineRequestError, InvalidRequestError, NotReadyError
from serve.records import GenerationObserver

logger = logging.getLogger(__name__)

_REQUEST_TYPES: dict[Endpoint, Any] = {
    "chat/completions": ChatCompletionRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
}


class VllmEngine:
    """One vLLM engine; see `serve.engine.protocol.Engine`."""

    def __init__(self, config: ServeConfig, base_folder: Path, observer: GenerationObserver) -> None:
        self._config = config
        self._base_folder = base_folder
        self._observer = observer
        self._llm: ObservedAsyncLLM | None = None
        self._serving = State()
        self._lora_ids = count(1)
        self._replay_ids = count(1)

    @property
    def is_ready(self) -> bool:
        return self._llm is not None and hasattr(self._serving, "openai_serving_chat") and not self._llm.errored

    async def start(self) -> None:
        if current_platform.is_cpu():
            set_cpu_environment()
        arguments = server_arguments(self._config, self._base_folder)
        self._llm = await asyncio.to_thread(_build, arguments)
        self._llm.observer = self._observer
        tasks = await self._llm.get_supported_tasks()
        await init_app_state(self._llm, self._serving, arguments, tasks)

    async def stop(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)

    async def load(self, target: Target, folder: Path) -> None:
        request = LoRARequest(str(target), next(self._lora_ids), str(folder))
        try:
            await self._require_llm().add_lora(request)
        except EngineDeadError:
            raise NotReadyError("The engine is not running; try again in a minute.") from None
        except Exception as error:  # vLLM raises bare exceptions of its worker here: boundary
            reason = create_error_response(error).error.message
            raise AdapterRefusedError(f"vLLM cannot load {str(target)!r}: {reason}") from error
        self._adapters[str(target)] = request

    async def unload(self, target: Target) -> None:
        request = self._adapters.pop(str(target), None)
        if request is not None:
            await self._require_llm().remove_lora(request.lora_int_id)

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        tokenizer: Any = self._require_llm().get_tokenizer()
        token_ids: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return token_ids

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        # `prompt_logprobs=0`: of each prompt token itself, and of no other candidate.
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        # AsyncLLM's own method: a replay is no client's request and stays out of the metrics.
        stream = AsyncLLM.generate(
            self._require_llm(),
            tokens_input(list(token_ids)),
            sampling,
            f"replay-{next(self._replay_ids)}",
            lora_request=self._adapters[str(target)] if target else None,
        )
        outputs = [output async for output in stream]
        positions = outputs[-1].prompt_logprobs or []
        return [
            position[token].logprob
            for token, position in zip(token_ids[1:], positions[1:], strict=True)
            if position is not None
        ]

    async def answer(self, endpoint: Endpoint, body: dict[str, Any], request: Request) -> Answer:
        self._require_llm()
        try:
            parsed = _REQUEST_TYPES[endpoint].model_validate(body)
            result = await self._create(endpoint, parsed, request)
        except ValidationError as error:
            raise _invalid_request(error) from None
        except EngineDeadError:
            raise NotReadyError("The engine is not running; try again in a minute.") from None
        except (VLLMError, ValueError, TypeError, NotImplementedError, OverflowError) as error:
            raise _engine_request_error(create_error_response(error)) from error
        if isinstance(result, ErrorResponse):
            raise _engine_request_error(result)
        if hasattr(result, "model_dump"):
            return Answer(result.model_dump(mode="json", by_alias=True))
        return Answer(server_sent_events(result))

    async def _create(self, endpoint: Endpoint, parsed: Any, request: Request) -> Any:
        if endpoint == "chat/completions":
            return await self._serving.openai_serving_chat.create_chat_completion(parsed, request)
        if endpoint == "completions":
            return await self._serving.openai_serving_completion.create_completion(parsed, request)
        return await self._serving.openai_serving_responses.create_responses(parsed, request)

    @property
    def _adapters(self) -> dict[str, LoRARequest]:
        adapters: dict[str, LoRARequest] = self._serving.openai_serving_models.lora_requests
        return adapters

    def _require_llm(self) -> ObservedAsyncLLM:
        if self._llm is None or not self.is_ready:
            raise NotReadyError("The server is starting; ask /ready, or try again in a minute.")
        return self._llm


def _build(arguments: Namespace) -> ObservedAsyncLLM:
    """Start the engine's processes and load the base; blocks for as long as that takes."""
    engine_args = AsyncEngineArgs.from_cli_args(arguments)
    llm = ObservedAsyncLLM.from_vllm_config(engine_args.create_engine_config())
    assert isinstance(llm, ObservedAsyncLLM)
    return llm


def _invalid_request(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or None
    return InvalidRequestError(f"{where or 'The request'}: {first['msg']}", param=where)


def _engine_request_error(response: ErrorResponse) -> EngineRequestError:
    return EngineRequestError(response.error.message, response.error.code, response.error.param)
