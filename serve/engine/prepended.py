"""vLLM's asynchronous engine with placeholders in front of the prompts of soft prompts, of which clients see nothing.

The worker's embedding layer writes the version's virtual tokens in their place (soft_prompts.py). They count towards
the context length, but neither as tokens of the prompt nor among its log-probabilities.
"""

import copy
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cached_property
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from serve.errors import InvalidRequestError


class PrependingAsyncLLM(AsyncLLM):
    """`AsyncLLM` that knows the soft prompts among its adapters."""

    @cached_property
    def virtual_tokens(self) -> dict[str, int]:
        """How many each resident soft prompt has, by `lora_name`."""
        return {}

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        num_virtual = self.num_virtual(lora_request)
        if num_virtual:
            sampling_params = copy.copy(sampling_params)
            room = self.room(prompt, sampling_params, lora_request)
            sampling_params.max_tokens = min(sampling_params.max_tokens or room, room)
            token_ids = [self._placeholder] * num_virtual + list(prompt["prompt_token_ids"])
            prompt = prompt | {"prompt_token_ids": token_ids}
        stream = super().generate(prompt, sampling_params, request_id, lora_request=lora_request, **kwargs)
        return without_virtual(stream, num_virtual) if num_virtual else stream

    def room(self, prompt: Any, sampling_params: Any, lora_request: Any) -> int:
        """Tokens that an answer can have beside prompt and virtual tokens.

        Args:
            prompt: vLLM's `TokensInput`.

        Raises:
            InvalidRequestError: None, or fewer than `min_tokens`. Of other adapters vLLM checks the prompt.
        """
        num_tokens, num_virtual = len(prompt["prompt_token_ids"]), self.num_virtual(lora_request)
        room = self.model_config.max_model_len - num_virtual - num_tokens
        if num_virtual and room < max(1, sampling_params.min_tokens):
            raise InvalidRequestError(
                f"The prompt has {num_tokens} tokens and this adapter {num_virtual} virtual ones; with an answer they "
                f"exceed the context length of {self.model_config.max_model_len} tokens. Shorten the prompt."
            )
        return room

    def num_virtual(self, lora_request: Any) -> int:
        """Virtual tokens in front of a request's prompt."""
        return self.virtual_tokens.get(lora_request.lora_name, 0) if lora_request else 0

    @cached_property
    def _placeholder(self) -> int:
        return placeholder_id(self.get_tokenizer(), self.model_config.get_vocab_size())


def placeholder_id(tokenizer: Any, vocab_size: int) -> int:
    """The id that stands for virtual tokens: all that it changes is its own penalty, where a request asks for one.

    One of the model's vocabulary for which the tokenizer has no token, so that no answer holds it; else a special token
    that neither ends answers nor stands in the chat template.
    """
    known = set(tokenizer.get_vocab().values())
    unused = next((number for number in reversed(range(vocab_size)) if number not in known), None)
    if unused is not None:
        return unused
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    special |= {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [number for token, number in special.items() if token not in template and number != tokenizer.eos_token_id]
    return max(free, default=tokenizer.eos_token_id or 0)


async def without_virtual(
    stream: AsyncGenerator[RequestOutput, None], num_virtual: int
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of a prompt as the client has sent it."""
    async with aclosing(stream):
        async for output in stream:
            if output.prompt_token_ids is not None:
                output.prompt_token_ids = output.prompt_token_ids[num_virtual:]
            if output.prompt_logprobs:  # with the last piece of the prompt, once
                output.prompt_logprobs = [None, *output.prompt_logprobs[num_virtual + 1 :]]
            if output.num_cached_tokens:
                output.num_cached_tokens = max(0, output.num_cached_tokens - num_virtual)
            yield output
