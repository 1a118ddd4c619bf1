"""Conversations to token ids and labels: the loss covers every assistant turn of weight 1, and nothing else.

The tokens are those of a server: what stands before a learnt turn is what it renders for a request that ends there, and
the turn is what the model has to generate then. So a template may render a turn otherwise once others follow (Qwen3
drops the thinking): such a conversation becomes several sequences, one for each learnt turn that does not fit into a
later one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from config.dataset import Message
from train.data.template import render
from train.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
BREAK = "\ufdd0"
"""A noncharacter, which no text has: what it separates is tokenised apart, and it vanishes."""


@dataclass(frozen=True)
class Encoded:
    """One training sequence.

    Attributes:
        prompt_ids: A server's rendering of the conversation before its last learnt turn.
        answer_ids: The last learnt turn, with the token that ends it.
        earlier: (start, end) in `prompt_ids` of other learnt turns, in order.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    is_cut: bool = False
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.answer_ids]

    @property
    def learnt(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of each learnt turn in `input_ids`."""
        return (*self.earlier, (len(self.prompt_ids), len(self)))

    @property
    def labels(self) -> list[int]:
        ids = self.input_ids
        labels = [IGNORED] * len(ids)
        for start, end in self.learnt:
            labels[start:end] = ids[start:end]
        return labels

    @property
    def num_learnt(self) -> int:
        return sum(end - start for start, end in self.learnt)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)

    def contains(self, earlier: "Encoded") -> bool:
        """Whether an earlier turn of the conversation stands in this prompt, token for token."""
        return self.prompt_ids[: len(earlier)] == earlier.prompt_ids + earlier.answer_ids


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    at: datetime,
    tools: Sequence[dict[str, Any]] = (),
) -> tuple[int, ...]:
    """Token ids of a conversation up to the answer; `at` is the time passed to the chat template."""
    return tuple(token_ids(tokenizer, _render(tokenizer, messages, at, tools, is_prompt=True)))


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    at: datetime,
    tools: Sequence[dict[str, Any]] = (),
) -> Encoded:
    """A conversation whose last turn is learnt; it ends with the end-of-turn token that stops generation.

    Raises:
        DataError: The chat template rejects the conversation, leaves out a text of it, or renders the prompt
            differently once an answer follows, so no mask would be correct.
    """
    prompt = _render(tokenizer, messages[:-1], at, tools, is_prompt=True)
    whole = _render(tokenizer, messages, at, tools, is_prompt=False)
    if not whole.startswith(prompt):
        raise DataError(
            "The base's chat template renders the prompt differently when an answer follows, so the answer's tokens "
            "cannot be located. Prepare the base with another `--chat-template`."
        )
    answer = whole[len(prompt) :]
    _check_nothing_is_lost(messages, whole, answer)
    answer_ids = token_ids(tokenizer, answer)
    return Encoded(tuple(token_ids(tokenizer, prompt)), tuple(_until_end_of_turn(tokenizer, answer_ids)))


def encode_turns(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    at: datetime,
    tools: Sequence[dict[str, Any]] = (),
) -> list[Encoded]:
    """The sequences that teach every assistant turn of weight 1, in order; usually one.

    Raises:
        DataError: As `encode`, or no turn is to be learnt.
    """
    ends = [n for n, turn in enumerate(messages, 1) if turn.role == "assistant" and turn.weight]
    if not ends:
        raise DataError("No assistant turn of weight 1 is left to learn from, so every token is masked.")
    sequences: list[Encoded] = []
    for end in reversed(ends):
        turn = encode(tokenizer, messages[:end], at, tools)
        hosts = [n for n, sequence in enumerate(sequences) if sequence.contains(turn)]
        for n in hosts[:1]:
            span = (len(turn.prompt_ids), len(turn))
            sequences[n] = replace(sequences[n], earlier=(span, *sequences[n].earlier))
        if not hosts:
            sequences.append(turn)
    return sequences[::-1]


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a rendered text; the template writes its own special tokens."""
    parts = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(BREAK))
    return [token for part in parts for token in part]


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    at: datetime,
    tools: Sequence[dict[str, Any]],
    *,
    is_prompt: bool,
) -> str:
    extra = {"tools": list(tools)} if tools else {}
    try:
        return render(tokenizer, [message.for_template() for message in messages], at, is_prompt=is_prompt, **extra)
    except Exception as error:  # boundary: a template is a program from a file, and may raise what it likes
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"The base's chat template rejects a conversation of the turns {roles}: {error or type(error).__name__}. "
            "Bring the turns into the order that it wants, or prepare the base with another `--chat-template`."
        ) from error


def _check_nothing_is_lost(messages: Sequence[Message], whole: str, answer: str) -> None:
    """Compare without white space, which templates strip; earlier answers may lose their thinking."""
    *context, last = messages
    texts = [turn.content for turn in context if turn.role in ("system", "developer", "user")]
    own = [last.content, *(call.function.name for call in last.tool_calls)]
    lost = _missing(texts, whole) + _missing(own, answer)
    if lost:
        raise DataError(
            f"The base's chat template leaves out or changes {lost[0][:60]!r}. Leave such texts out, or prepare the "
            "base with a `--chat-template` that writes them."
        )


def _missing(texts: Sequence[str], rendered: str) -> list[str]:
    packed = "".join(rendered.split())
    return [text for text in texts if "".join(text.split()) not in packed]


def _until_end_of_turn(tokenizer: "PreTrainedTokenizerBase", answer_ids: list[int]) -> list[int]:
    """Up to the end-of-turn token, or a special token at the very end; a template that writes none gets the first."""
    eos = tokenizer.eos_token_id
    if eos in answer_ids:
        return answer_ids[: answer_ids.index(eos) + 1]
    added = tokenizer.added_tokens_decoder
    special = {n for n, token in added.items() if token.special and not token.content.startswith("</")}  # not a tag
    end = max((n for n, token in enumerate(answer_ids, 1) if token in special), default=0)
    has_end = end > 0 and not str(tokenizer.decode(answer_ids[end:])).strip()
    return answer_ids[:end] if has_end else [*answer_ids, eos]


def special_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """The special tokens of a rendered text, in order."""
    added = tokenizer.added_tokens_decoder
    return [added[n].content for n in token_ids(tokenizer, text) if n in added and added[n].special]
