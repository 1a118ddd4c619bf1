"""What one request may ask for, checked on the parsed body before vLLM sees it. Pure functions.

Wrong types are left to vLLM, which refuses them itself. What it would convert is judged as converted: to it, "99999"
and 99999.0 are whole numbers. Nothing here recurses, so no body can exhaust the stack.
"""

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from config.limits import RequestLimits
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError

_BY_MODEL_ONLY = "an adapter is chosen with `model`, never by a path"
_CHANGES_COST = "it changes how much memory and time the reading of media takes"
_OTHER_MACHINES = "it addresses the caches of other machines"

REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "chat_template": "it is a program that would run on the server",
        "chat_template_kwargs": "adapters answer in the chat template that they were trained with; what is taken is "
        "`reasoning_effort`",
        "mm_processor_kwargs": _CHANGES_COST,
        "media_io_kwargs": _CHANGES_COST,
        "prompt_embeds": "it is a serialised tensor, which must be loaded to be looked at",
        "kv_transfer_params": _OTHER_MACHINES,
        "ec_transfer_params": _OTHER_MACHINES,
        "vllm_xargs": "it goes unchecked to whatever extensions the engine has",
        "lora_request": _BY_MODEL_ONLY,
        "lora_path": _BY_MODEL_ONLY,
        "lora_local_path": _BY_MODEL_ONLY,
        "lora_modules": _BY_MODEL_ONLY,
        "priority": "whose turn it is, the server decides",
        "request_id": "an id is given in the `x-request-id` header",
        "use_beam_search": "it turns one request into one for every beam and token",
        "repetition_detection": "it searches every answer in the scheduler, which all requests share",
    }
)
"""Extensions that no client may use, and why. A value that is null, false, zero or empty uses nothing.

Looked at and left alone: `cache_salt` (vLLM bounds it, and it only splits the prefix cache), `truncate_prompt_tokens`,
`add_generation_prompt`, `continue_final_message`, `echo` (they change the client's own prompt), `documents` (counted
with the prompt), `session_id` (a label), `background` (vLLM refuses it without a store of responses).
"""

_ANSWER_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
_LENGTHS: dict[Endpoint, tuple[str, ...]] = {
    "chat/completions": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""What says how long an answer may be."""
_ANSWERS = ("n", "best_of")
LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
TOOLS = ("tools", "functions")
_TOKEN_RULES = ("logit_bias", "bad_words", "stop_token_ids", "allowed_token_ids", "logprob_token_ids")
_MESSAGES = ("messages", "input", "previous_input_messages")
_PROMPT = (*_MESSAGES, "instructions", "prompt", "suffix", "documents", *TOOLS)
_IMAGES = ("image_url", "image_pil", "image_embeds", "input_image")
_SOUNDS = ("audio_url", "audio_embeds", "input_audio")
_MEDIA = frozenset({*_IMAGES, *_SOUNDS, "video_url", "video_embeds", "prompt_embeds", "input_file"})
SCHEMAS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_EMBEDDED_JSON = frozenset({"json", "structural_tag", "guided_json"})
_PATTERNS = frozenset({"pattern", "regex", "whitespace_pattern", "guided_regex"})
_REPEATS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})

_CONTAINERS = (dict, list)
_MAX_FIELDS = 256  # the longest of vLLM's requests has some 60
_MAX_NUMBER_CHARS = 5000  # pydantic reads no number of more than 4,300
_PATTERN_TOKEN = re.compile(r"\\.|\{\d+(?:,\d*)?\}|.", re.DOTALL)


def check_limits(body: dict[str, Any], endpoint: Endpoint, limits: RequestLimits) -> None:
    """Refuse a request that asks for too much, or for what no client may have.

    Raises:
        InvalidRequestError: With its `param`; the message names the value got and the limit.
    """
    if len(body) > _MAX_FIELDS:
        raise InvalidRequestError(f"The request has {len(body)} fields; this server takes at most {_MAX_FIELDS}.")
    for field, value in body.items():  # before all else: what follows writes JSON, which recurses
        _check_depth(field[:80], value, limits.max_depth)
    _check_refused(body)
    _check_numbers(body, limits)
    if endpoint != "completions":
        _check_has_a_length(body, endpoint)
    _check_lists(body, limits)
    if endpoint == "completions":
        _check_batch(body, limits)
    _check_prompt_chars(body, limits)
    _check_is_text(body)
    for field, schema in _schemas(body):
        _check_schema(field, schema, limits)


def largest_numbers(limits: RequestLimits) -> dict[str, int]:
    """The largest value of every field that is a number."""
    return {
        **dict.fromkeys(_ANSWER_TOKENS, limits.max_tokens),
        **dict.fromkeys(_ANSWERS, limits.max_n),
        **dict.fromkeys(LOGPROBS, limits.max_logprobs),
    }


def most_entries(limits: RequestLimits) -> dict[str, int]:
    """The most entries of every field that is a list or an object."""
    return {
        **dict.fromkeys(_MESSAGES, limits.max_messages),
        **dict.fromkeys(TOOLS, limits.max_tools),
        "stop": limits.max_stop,
        **dict.fromkeys(_TOKEN_RULES, limits.max_token_rules),
        "prompt": limits.max_prompt_chars,  # soon told; to count millions of token ids is not
    }


def default_length(body: dict[str, Any], endpoint: Endpoint, default_max_tokens: int) -> dict[str, int]:
    """The length that a request gets which names none: to vLLM that would be all that is left of the context."""
    if endpoint == "completions" and "max_tokens" not in body:
        return {}  # OpenAI's own default of 16, which only a null undoes
    return answer_length(body, endpoint, default_max_tokens)


def answer_length(body: dict[str, Any], endpoint: Endpoint, max_tokens: int) -> dict[str, int]:
    """The endpoint's field for the length of an answer, or nothing where the request names one."""
    lengths = _LENGTHS[endpoint]
    return {} if any(body.get(field) is not None for field in lengths) else {lengths[0]: max_tokens}


def _check_depth(field: str, value: Any, most: int) -> None:
    depth = sum(1 for _ in _levels(value))
    if depth > most:
        raise _too_much(field, f"nests {depth} levels deep", most)


def _check_refused(body: dict[str, Any]) -> None:
    for field, reason in REFUSED_FIELDS.items():
        if body.get(field):
            raise InvalidRequestError(f"This server does not take `{field}`: {reason}. Leave it out.", param=field)


def _check_numbers(body: dict[str, Any], limits: RequestLimits) -> None:
    for field, most in largest_numbers(limits).items():
        value = _number(body.get(field))
        if value is not None and value > most:
            raise _too_much(field, f"is {_shown(value)}", most)
    for field in LOGPROBS:
        value = _number(body.get(field))
        if value is not None and value < 0:
            raise _too_much(field, f"is {_shown(value)}, which may mean the whole vocabulary", limits.max_logprobs)


def _check_has_a_length(body: dict[str, Any], endpoint: Endpoint) -> None:
    lengths = _LENGTHS[endpoint]
    if body.get("ignore_eos") and all(_number(body.get(field)) is None for field in lengths):
        raise InvalidRequestError(
            f"`ignore_eos` without `{lengths[0]}` says nothing of where the answer ends. Give both.", param="ignore_eos"
        )


def _check_lists(body: dict[str, Any], limits: RequestLimits) -> None:
    for field, most in most_entries(limits).items():
        value = body.get(field)
        if isinstance(value, _CONTAINERS) and len(value) > most:
            raise _too_much(field, f"has {len(value)} entries", most)
    for field in ("stop", "bad_words"):
        longest = max(map(len, _texts(body.get(field))), default=0)
        if longest > limits.max_stop_chars:
            raise _too_much(field, f"has an entry of {longest} characters", limits.max_stop_chars)


def _check_batch(body: dict[str, Any], limits: RequestLimits) -> None:
    prompt = body.get("prompt")
    # The first entry tells: a list of numbers is one prompt, and vLLM refuses a mixed list.
    num_prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    if num_prompts > limits.max_prompts:
        raise _too_much("prompt", f"holds {num_prompts} prompts", limits.max_prompts)
    num_answers = num_prompts * (_number(body.get("n")) or 1)
    if num_answers > limits.max_sequences:
        raise _too_much("n", f"makes {_shown(num_answers)} answers of {num_prompts} prompts", limits.max_sequences)


def _check_prompt_chars(body: dict[str, Any], limits: RequestLimits) -> None:
    num_chars = 0
    for field in _PROMPT:
        num_chars += _num_chars(body.get(field))
        if num_chars > limits.max_prompt_chars:
            raise _too_much(field, f"brings the prompt to {num_chars} characters", limits.max_prompt_chars)


def _check_is_text(body: dict[str, Any]) -> None:
    """Nothing else: a model of several senses would let a client have any address fetched from here."""
    for field in _MESSAGES:
        for part in _objects(body.get(field)):
            media = _MEDIA.intersection((*part, *_texts(part.get("type"))))
            if media:
                raise InvalidRequestError(f"`{field}` holds `{min(media)}`; this server takes text only.", param=field)


def _schemas(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Everything that becomes a grammar, by the name that a client knows it by."""
    for field in SCHEMAS:
        yield field, body.get(field)
    if isinstance(text := body.get("text"), dict):
        yield "text.format", text.get("format")
    for field in TOOLS:
        if isinstance(tools := body.get(field), list):
            yield from ((f"{field}.{number}", tool) for number, tool in enumerate(tools))


def _check_schema(field: str, schema: Any, limits: RequestLimits) -> None:
    if not schema:
        return
    size_bytes = len(json.dumps(schema))
    if size_bytes > limits.max_schema_bytes:
        raise _too_much(field, f"has {size_bytes} bytes", limits.max_schema_bytes)
    for document in (schema, *_embedded(field, schema)):
        _check_depth(field, document, limits.max_schema_depth)
        for node in _objects({field: document}):
            _check_repeats(field, node, limits.max_schema_repeats)
            for pattern in _patterns(node):
                _check_pattern(field, pattern, limits.max_pattern_chars)


def _embedded(field: str, schema: Any) -> Iterator[Any]:
    """Schemas that stand in a schema as text; vLLM says what is wrong with text that is no JSON."""
    named = schema.items() if isinstance(schema, dict) else ((field, schema),)
    for name, text in named:
        if name in _EMBEDDED_JSON and isinstance(text, str):
            try:
                yield json.loads(text)
            except ValueError:
                continue
            except RecursionError:
                raise InvalidRequestError(f"`{field}` nests too deep to be read.", param=field) from None


def _check_repeats(field: str, node: dict[str, Any], most: int) -> None:
    for name in _REPEATS.intersection(node):
        value = _number(node[name])
        if value is not None and value > most:
            raise _too_much(field, f"has a `{name}` of {_shown(value)}", most)


def _patterns(node: dict[str, Any]) -> Iterator[str]:
    for name in _PATTERNS.intersection(node):
        if isinstance(node[name], str):
            yield node[name]
    if isinstance(by_pattern := node.get("patternProperties"), dict):
        yield from by_pattern


def _check_pattern(field: str, pattern: str, most: int) -> None:
    if len(pattern) > most:
        raise _too_much(field, f"has a regular expression of {len(pattern)} characters", most)
    num_chars = _written_out(pattern)
    if num_chars > most:
        got = f"has a regular expression of {_shown(num_chars)} characters, its repetitions written out"
        raise _too_much(field, got, most)


def _written_out(pattern: str) -> int:
    """Characters of a regular expression whose counted repetitions, as in `x{2,50}`, are written out, nested ones too.

    An estimate in linear time: of what a grammar grows by, not of what the expression matches.
    """
    groups, last, is_class = [0], 0, False  # sizes of the open groups, outermost first; size of what came last
    for token in _PATTERN_TOKEN.findall(pattern):
        if is_class or (token not in "()" and len(token) < 3):
            is_class = token == "[" or (is_class and token != "]")
            last = 1
            groups[-1] += last
        elif token == "(":
            groups.append(0)
        elif token == ")":
            last = groups.pop() if len(groups) > 1 else 1
            groups[-1] += last + 2
        else:
            times = max(1, *(int(number) for number in re.findall(r"\d+", token)))
            groups[-1] += last * (times - 1)
            last *= times
    return sum(groups)


def _levels(value: Any) -> Iterator[list[Any]]:
    """The objects and lists of a document, level by level."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    while level:
        yield level
        level = [child for node in level for child in _children(node) if isinstance(child, _CONTAINERS)]


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    return (node for level in _levels(value) for node in level if isinstance(node, dict))


def _num_chars(value: Any) -> int:
    """Characters of all text in a document, names included; anything else counts as one."""
    if isinstance(value, str):
        return len(value)
    num_chars = 0
    for level in _levels(value):
        for node in level:
            num_chars += sum(map(len, node)) if isinstance(node, dict) else 0
            num_chars += sum(len(child) if isinstance(child, str) else 1 for child in _children(node))
    return num_chars


def _texts(value: Any) -> Iterator[str]:
    """Of a text or of a list of texts, as clients may write `stop`."""
    entries = value if isinstance(value, list) else (value,)
    return (entry for entry in entries if isinstance(entry, str))


def _number(value: Any) -> float | None:
    """What vLLM's validation would read as a number; None where it would not. Booleans are no numbers here."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _MAX_NUMBER_CHARS:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _shown(value: float) -> str:
    """A number, short: the digits of a huge one are of no use to anyone."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 10**18 else "over 10**18"


def _too_much(field: str, got: str, most: int) -> InvalidRequestError:
    return InvalidRequestError(f"`{field}` {got}; this server takes at most {most}.", param=field)
