"""vLLM's structured outputs, and where their grammars are compiled: by `GrammarChecks`, never on the event loop."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams, check_json_nesting
from vllm.v1.structured_output import backend_xgrammar
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from serve.engine.grammars import Grammar
from serve.engine.replace import Replacement, install


def validate_without_compiling() -> None:
    """Replace vLLM's validation, which compiles each grammar on the event loop.

    All that reaches the engine was compiled by then: `ObservedAsyncLLM.generate` asks first.
    """
    install(Replacement(backend_xgrammar, "validate_xgrammar_grammar", validate, is_value=True))


def validate(sampling_params: SamplingParams) -> None:
    """What vLLM's own function refuses and changes, without its compilation.

    Raises:
        VLLMValidationError: xgrammar cannot do what a schema asks for.
    """
    outputs = sampling_params.structured_outputs
    if outputs is None:
        return
    if outputs.choice:
        outputs.grammar = choice_as_grammar(outputs.choice)
        outputs.choice = None
    elif outputs.json:
        check_json_nesting(outputs.json)
        _check_features(outputs.json)


def _check_features(schema: str | dict[str, Any]) -> None:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise VLLMValidationError("The JSON schema is not JSON.") from error
    if isinstance(schema, dict) and backend_xgrammar.has_xgrammar_unsupported_json_features(schema):
        raise VLLMValidationError(
            "The JSON schema has keywords that cannot be held to while an answer is written: `multipleOf`, "
            "`uniqueItems`, `contains`, several `allOf`, or `pattern`, `format` and lengths together. Leave them out."
        )


def grammar_of(outputs: StructuredOutputsParams) -> Grammar | None:
    """What the engine will compile; None where that is the same for everybody.

    Raises:
        ValueError: As `validate`.
    """
    outputs = replace(outputs)
    validate(SamplingParams(structured_outputs=outputs))
    if outputs.json is not None:
        return "json", outputs.json if isinstance(outputs.json, str) else json.dumps(outputs.json)
    if outputs.regex is not None:
        if "\0" in outputs.regex:
            raise VLLMValidationError("A regular expression must not contain a NUL character.")
        return "regex", outputs.regex
    if outputs.grammar is not None:
        return "lark" if grammar_is_likely_lark(outputs.grammar) else "grammar", outputs.grammar
    return None if outputs.structural_tag is None else ("structural_tag", outputs.structural_tag)


def tokenizer_json(config: VllmConfig, tokenizer: Any) -> Callable[[], str]:
    """How the engine's xgrammar sees the tokenizer, as JSON."""

    def found() -> str:
        backend = backend_xgrammar.XgrammarBackend(
            config, tokenizer=tokenizer, vocab_size=config.model_config.get_vocab_size()
        )
        info: str = backend.compiler.compile_grammar('root ::= "a"').tokenizer_info.serialize_json()
        return info

    return found
