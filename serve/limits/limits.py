"""Check a parsed request body against the limits before vLLM sees it. Pure functions.

Wrong types are left to vLLM, which refuses them itself. What it would convert is judged as converted: to it, "99999"
and 99999.0 are whole numbers. Nothing here recurses, so no body can exhaust the stack.
"""

import math
from collections.abc import Mapping
from itertools import chain
from math import isinf
from types import MappingProxyType
from typing import Any

from config.limits import RequestLimits
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError
from serve.limits.documents import (
    CONTAINERS,
    all_children,
    as_number,
    check_depth,
    count_chars,
    count_entries,
    count_values,
    objects,
    shown,
    texts,
    too_much,
)
from serve.limits.schemas import TOOLS, check_schemas

_BY_MODEL_ONLY = "an adapter is chosen with `model`, never by a path"
_CHANGES_COST = "it changes how much memory and time media decoding takes"
_OTHER_MACHINES = "it addresses the caches of other machines"

REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "chat_template": "it is a program that would run on the server",
        "chat_template_kwargs": "adapters answer in the chat template that they were trained with; "
        "`reasoning_effort` is accepted",
        "mm_processor_kwargs": _CHANGES_COST,
        "media_io_kwargs": _CHANGES_COST,
        "prompt_embeds": "it is a serialised tensor, which would have to be loaded to be inspected",
        "kv_transfer_params": _OTHER_MACHINES,
        "ec_transfer_params": _OTHER_MACHINES,
        "vllm_xargs": "it is passed unchecked to the engine's extensions",
        "lora_request": _BY_MODEL_ONLY,
        "lora_path": _BY_MODEL_ONLY,
        "lora_local_path": _BY_MODEL_ONLY,
        "lora_modules": _BY_MODEL_ONLY,
        "priority": "the server decides the scheduling order",
        "request_id": "send the id in the `x-request-id` header",
        "use_beam_search": "it multiplies one request by the number of beams and tokens",
        "repetition_detection": "it searches every answer in the scheduler, which all requests share",
        "previous_response_id": "responses are not stored; send the earlier turns, questions and answers, in "
        "`input` instead",
        "conversation": "conversations are not stored; send the earlier turns in `input` instead",
        "background": "answers are not stored for later; wait for the response, or set `stream` to receive it in parts",
    }
)
"""Refused fields with the reason. A value that is null, false, zero or empty is accepted.

Looked at and left alone: `cache_salt` (`CacheSalts` checks it and makes it a tenant's), `truncate_prompt_tokens`,
`add_generation_prompt`, `continue_final_message`, `echo` (they change the client's own prompt), `documents` (counted
with the prompt), `session_id` (a label), `store` (a wish that OpenAI's clients send by default; nothing is kept).
"""

_ANSWER_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
_LENGTHS: dict[Endpoint, tuple[str, ...]] = {
    "chat/completions": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""Fields that limit the length of an answer."""
_ANSWERS = ("n", "best_of")
_OPENAI_MAX_TOKENS = 16  # of an answer of /v1/completions that names no length
_CHARS_PER_TOKEN = 4  # of English; numbers (token ids) count as a character
LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
_TOKEN_RULES = ("logit_bias", "bad_words", "stop_token_ids", "allowed_token_ids", "logprob_token_ids")
_MESSAGES = ("messages", "input", "previous_input_messages")
_PROMPT = (*_MESSAGES, "instructions", "prompt", "suffix", "documents", *TOOLS)
_IMAGES = ("image_url", "image_pil", "image_embeds", "input_image")
_SOUNDS = ("audio_url", "audio_embeds", "input_audio")
_MEDIA = frozenset({*_IMAGES, *_SOUNDS, "video_url", "video_embeds", "prompt_embeds", "input_file"})
_MAX_FIELDS = 256  # the longest of vLLM's requests has some 60
_MAX_VALUES = 16_384  # of a field that is no prompt; the longest that anybody needs is a schema
_PARTS_OF_A_MESSAGE = 8  # on average; vLLM holds each part against every kind of part that there is


def check_limits(body: dict[str, Any], endpoint: Endpoint, limits: RequestLimits) -> None:
    """Refuse a request that exceeds a limit or uses a refused field.

    Raises:
        InvalidRequestError: With its `param`; the message names the value got and the limit.
    """
    if len(body) > _MAX_FIELDS:
        raise InvalidRequestError(f"The request has {len(body)} fields; this server accepts at most {_MAX_FIELDS}.")
    _check_lists(body, limits)  # first, for it is soon done
    for field, value in body.items():  # before the rest, which writes JSON, and that recurses
        check_depth(field[:80], value, limits.max_depth)
    _check_values(body, limits)
    _check_finite(body)
    _check_refused(body)
    _check_numbers(body, limits)
    if endpoint == "completions":
        _check_batch(body, limits)
    else:
        _check_has_a_length(body, endpoint)
    check_sequences(body, endpoint, limits.max_sequences)
    _check_prompt_chars(body, limits)
    _check_is_text(body)
    check_schemas(body, limits)


def check_sequences(body: dict[str, Any], endpoint: Endpoint, most: int) -> None:
    """Refuse a request that needs more sequences than `most`.

    Raises:
        InvalidRequestError: With both numbers.
    """
    num_answers = num_sequences(body, endpoint)
    if num_answers > most:
        num_prompts = _num_prompts(body) if endpoint == "completions" else 1
        of_prompts = f" of {num_prompts} prompts" if num_prompts > 1 else ""
        raise too_much("n", f"makes {shown(num_answers)} answers{of_prompts}", most)


def num_sequences(body: dict[str, Any], endpoint: Endpoint) -> int:
    """Sequences of a request: prompts times `n` (or `best_of`)."""
    if endpoint == "responses":
        return 1
    num_answers = max(1, *(_whole(body.get(field)) or 1 for field in _ANSWERS))
    return num_answers * (max(1, _num_prompts(body)) if endpoint == "completions" else 1)


def tokens_asked(body: dict[str, Any], endpoint: Endpoint, longest: int, most: int) -> int:
    """Upper estimate of a request's tokens: prompts, estimated from characters, and answers of full length.

    Args:
        longest: Of an answer where the request does not say; `most` is the most of any.
    """
    lengths = [_whole(body.get(field)) for field in _LENGTHS[endpoint]]
    if endpoint == "completions" and "max_tokens" not in body:
        longest = _OPENAI_MAX_TOKENS
    asked = max((length for length in lengths if length is not None), default=longest)
    num_chars = sum(count_chars(body.get(field)) for field in _PROMPT)
    num_answers = num_sequences(body, endpoint)
    return math.ceil(num_chars / _CHARS_PER_TOKEN) + num_answers * min(max(asked, 1), most)


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
    """The default length of an answer; vLLM alone would fill the context."""
    if endpoint == "completions" and "max_tokens" not in body:
        return {}  # OpenAI's own default of 16, which only a null undoes
    return answer_length(body, endpoint, default_max_tokens)


def answer_length(body: dict[str, Any], endpoint: Endpoint, max_tokens: int) -> dict[str, int]:
    """The endpoint's field for the length of an answer, or nothing where the request names one."""
    lengths = _LENGTHS[endpoint]
    return {} if any(body.get(field) is not None for field in lengths) else {lengths[0]: max_tokens}


def _check_refused(body: dict[str, Any]) -> None:
    for field, reason in REFUSED_FIELDS.items():
        if body.get(field):
            raise InvalidRequestError(f"This server does not accept `{field}`: {reason}. Leave it out.", param=field)


def _check_numbers(body: dict[str, Any], limits: RequestLimits) -> None:
    for field, most in largest_numbers(limits).items():
        value = as_number(body.get(field))
        if value is not None and value > most:
            raise too_much(field, f"is {shown(value)}", most)
    for field in LOGPROBS:
        value = as_number(body.get(field))
        if value is not None and value < 0:
            raise too_much(field, f"is {shown(value)}, which may mean the whole vocabulary", limits.max_logprobs)


def _check_has_a_length(body: dict[str, Any], endpoint: Endpoint) -> None:
    lengths = _LENGTHS[endpoint]
    if body.get("ignore_eos") and all(as_number(body.get(field)) is None for field in lengths):
        raise InvalidRequestError(
            f"`ignore_eos` without `{lengths[0]}` does not limit the answer's length. Set both.", param="ignore_eos"
        )


def _check_lists(body: dict[str, Any], limits: RequestLimits) -> None:
    for field, most in most_entries(limits).items():
        value = body.get(field)
        if isinstance(value, CONTAINERS) and len(value) > most:
            raise too_much(field, f"has {len(value)} entries", most)
    for field in ("stop", "bad_words"):
        longest = max(map(len, texts(body.get(field))), default=0)
        if longest > limits.max_stop_chars:
            raise too_much(field, f"has an entry of {longest} characters", limits.max_stop_chars)


def _check_values(body: dict[str, Any], limits: RequestLimits) -> None:
    most = limits.max_messages * _PARTS_OF_A_MESSAGE
    for field in _MESSAGES:
        num_entries = count_entries(body.get(field))
        if num_entries > most:
            raise too_much(field, f"has {num_entries} entries, including those of its messages", most)
    for field in body.keys() - set(_PROMPT):
        num_values = count_values(body[field])
        if num_values > _MAX_VALUES:
            raise too_much(field[:80], f"contains {num_values} values", _MAX_VALUES)


def _check_finite(body: dict[str, Any]) -> None:
    """Refuse numbers beyond the range of a float: 1e999 is read as infinity, which JSON cannot represent."""
    for field, value in body.items():
        if any(type(child) is float and isinf(child) for child in chain((value,), all_children(value))):
            message = f"`{field[:80]}` contains a number beyond the range of a float, as 1e999."
            raise InvalidRequestError(message, param=field[:80])


def _check_batch(body: dict[str, Any], limits: RequestLimits) -> None:
    if (num_prompts := _num_prompts(body)) > limits.max_prompts:
        raise too_much("prompt", f"contains {num_prompts} prompts", limits.max_prompts)


def _whole(value: Any) -> int | None:
    number = as_number(value)
    return None if number is None or not math.isfinite(number) else math.ceil(number)


def _num_prompts(body: dict[str, Any]) -> int:
    prompt = body.get("prompt")
    # The first entry tells: a list of numbers is one prompt, and vLLM refuses a mixed list.
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def _check_prompt_chars(body: dict[str, Any], limits: RequestLimits) -> None:
    num_chars = 0
    for field in _PROMPT:
        num_chars += count_chars(body.get(field))
        if num_chars > limits.max_prompt_chars:
            raise too_much(field, f"brings the prompt to {num_chars} characters", limits.max_prompt_chars)


def _check_is_text(body: dict[str, Any]) -> None:
    """Refuse media: a multimodal model would fetch URLs that a client names."""
    for field in _MESSAGES:
        for part in objects(body.get(field)):
            media = _MEDIA.intersection((*part, *texts(part.get("type"))))
            if media:
                raise InvalidRequestError(
                    f"`{field}` holds `{min(media)}`; this server accepts text only.", param=field
                )
