"""What of a structured request reaches the compiler, and that vLLM compiles nothing itself."""

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.structured_output import backend_xgrammar

from config.serve import ServeConfig
from serve.engine.calls import EngineCall
from serve.engine.engine import VllmEngine
from serve.engine.masks import GRAMMAR_TOO_COSTLY
from serve.engine.observed import ObservedAsyncLLM
from serve.engine.structured import grammar_of, validate_without_compiling
from serve.errors import GrammarError
from serve.records import Caller, RequestResult, Source

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
ENDLESS = {"type": "object", "properties": {f"p{n}": {"type": "string", "pattern": ".{0,2000}"} for n in range(500)}}


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        ({"json": SCHEMA}, ("json", json.dumps(SCHEMA))),
        ({"json": json.dumps(SCHEMA)}, ("json", json.dumps(SCHEMA))),
        ({"regex": "a+"}, ("regex", "a+")),
        ({"choice": ["yes", "no"]}, ("grammar", 'root ::= "yes" | "no"')),
        ({"grammar": 'root ::= "a"'}, ("grammar", 'root ::= "a"')),
        ({"grammar": 'start: "a"'}, ("lark", 'start: "a"')),
        ({"structural_tag": "{}"}, ("structural_tag", "{}")),
        ({"json_object": True}, None),
    ],
)
def test_each_kind_is_compiled_as_the_engine_will(asked: dict[str, Any], grammar: tuple[str, str] | None) -> None:
    outputs = StructuredOutputsParams(**asked)
    assert grammar_of(outputs) == grammar
    assert {name: getattr(outputs, name) for name in asked} == asked


@pytest.mark.parametrize(
    "asked",
    [
        {"json": {"type": "array", "uniqueItems": True}},
        {"json": {"type": "number", "multipleOf": 3}},
        {"json": '{"type": '},
        {"regex": "a\0"},
    ],
)
def test_what_xgrammar_cannot_do_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError):
        grammar_of(StructuredOutputsParams(**asked))


def validate(sampling: SamplingParams) -> None:
    """As vLLM validates what a request asks."""
    model: Any = SimpleNamespace(is_diffusion=False)
    config: Any = SimpleNamespace(backend="xgrammar")
    tokenizer: Any = object()
    sampling._validate_structured_outputs(model, config, tokenizer=tokenizer)


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_xgrammar, "validate_xgrammar_grammar", backend_xgrammar.validate_xgrammar_grammar)
    validate_without_compiling()


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("asked", [{"json": ENDLESS}, {"regex": "(.{0,2000}){0,2000}"}, {"structural_tag": "{}"}])
def test_vllms_own_validation_compiles_nothing(asked: dict[str, Any]) -> None:
    """By its own code the first two would never end."""
    sampling = SamplingParams(structured_outputs=StructuredOutputsParams(**asked))
    validate(sampling)


@pytest.mark.usefixtures("without_compiling")
def test_a_choice_still_becomes_a_grammar() -> None:
    sampling = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["yes"]))
    validate(sampling)
    assert sampling.structured_outputs is not None
    assert (sampling.structured_outputs.choice, sampling.structured_outputs.grammar) == (None, 'root ::= "yes"')


class Refusing:
    """In the place of `GrammarChecks`: refuses one text."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def check(self, grammar: tuple[str, str], tenant: str = "") -> None:
        self.asked.append(grammar)
        if grammar[1] == "bomb":
            raise GrammarError("The grammar of this request is refused: bomb.")


class Observer:
    def generation_started(self, lora_name: str | None, source: Source) -> None: ...

    def generation_finished(self, record: Any) -> None: ...


def output(stop_reason: str | None) -> Any:
    choice = SimpleNamespace(
        index=0, text="a", token_ids=[1], finish_reason="error", stop_reason=stop_reason, logprobs=None
    )
    return SimpleNamespace(
        outputs=[choice], finished=True, metrics=None, prompt_token_ids=[1], num_cached_tokens=0, prompt="a"
    )


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's engine gives one output, whose `stop_reason` is the prompt."""

    async def generate(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        yield output(prompt)

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    made: Any = ObservedAsyncLLM.__new__(ObservedAsyncLLM)
    made.output_handler, resources = None, SimpleNamespace(engine_dead=False)
    made.engine_core = SimpleNamespace(resources=resources, shutdown=lambda timeout: None)
    made.observer, made.grammars = Observer(), Refusing()
    return made


def sampling_of(regex: str | None) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(regex=regex) if regex else None)


async def texts(stream: AsyncGenerator[Any, None]) -> list[str]:
    return [each.outputs[0].text async for each in stream]


@pytest.mark.anyio
async def test_a_generation_begins_after_its_grammar_was_compiled(llm: Any) -> None:
    assert await texts(llm.generate(None, sampling_of(None), "1")) == ["a"]
    assert await texts(llm.generate(None, sampling_of("a+"), "2")) == ["a"]
    with pytest.raises(GrammarError, match="bomb"):
        await texts(llm.generate(None, sampling_of("bomb"), "3"))
    assert llm.grammars.asked == [("regex", "a+"), ("regex", "bomb")]


@pytest.mark.anyio
async def test_what_the_engine_ended_for_its_grammar_is_a_400(llm: Any) -> None:
    with pytest.raises(GrammarError, match="the answer was ended") as ended:
        await texts(llm.generate(GRAMMAR_TOO_COSTLY, sampling_of("a+"), "1"))
    assert (ended.value.status, ended.value.code) == (400, "grammar_refused")


@pytest.mark.anyio
async def test_grammars_are_known_before_a_stream_is_read(llm: Any) -> None:
    call = EngineCall(Caller("client", "acme", "r-1"), RequestResult())
    with call.as_current():
        await asyncio.create_task(begin(llm))
    llm.generate(None, sampling_of("later"), "2")
    assert call.grammars == [("regex", "a+")]


async def begin(llm: Any) -> None:
    llm.generate(None, sampling_of("a+"), "1")


@pytest.mark.anyio
async def test_a_stream_with_a_bad_grammar_never_begins(llm: Any) -> None:
    class Chat:
        """vLLM's: a stream begins when it is read."""

        async def create_chat_completion(self, parsed: Any, request: Any) -> AsyncGenerator[Any, None]:
            stream: AsyncGenerator[Any, None] = llm.generate(None, sampling_of("bomb"), "1")
            return stream

    engine = VllmEngine(ServeConfig(base="tiny"), Path("tiny"), Observer())
    engine._llm, engine._serving.openai_serving_chat = llm, Chat()
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with pytest.raises(GrammarError, match="bomb"):
        await engine.answer("chat/completions", body, Caller("client"))


def test_one_backend_is_fixed_in_vllms_arguments(tmp_path: Any) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from serve.engine.arguments import server_arguments

    arguments: Namespace = server_arguments(ServeConfig(base="tiny", kv_cache_bytes=1 << 24), tmp_path)
    assert AsyncEngineArgs.from_cli_args(arguments).structured_outputs_config.backend == "xgrammar"
