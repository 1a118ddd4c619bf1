"""A hand-written engine that renders by a real tokenizer, on whatever day a test says it is."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from adapters.fingerprint import Fingerprint
from adapters.reference import Target
from adapters.template_time import strftime_at
from tests.fake_engine import FakeEngine
from tests.tiny_llama import DATED_TEMPLATE, tiny_tokenizer


class DatedEngine(FakeEngine):
    """Answers the golden prompts of `golden` as training did, and no other prompt."""

    def __init__(self, today: datetime, chat_template: str = DATED_TEMPLATE) -> None:
        super().__init__()
        self.today = today
        self.golden: Fingerprint | None = None
        self._tokenizer = tiny_tokenizer(chat_template)

    def render(
        self, messages: Sequence[dict[str, Any]], at: datetime | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        clock = strftime_at(at or self.today)
        return list(
            self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                strftime_now=clock,
            )
        )

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        assert self.golden is not None
        (prompt,) = [p for p in self.golden.prompts if (*p.prompt_token_ids, *p.answer_token_ids) == tuple(token_ids)]
        answer = prompt.base_logprobs if target is None else prompt.adapter_logprobs
        return [-1.0] * (len(prompt.prompt_token_ids) - 1) + list(answer)
