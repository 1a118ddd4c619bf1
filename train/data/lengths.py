"""Rows that exceed `recipe.max_length` tokens: questions are cut at token borders, answers never.

Cut are user turns and tool results, the longest first; system prompts and the assistant's turns stay whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from config.data import CutMode
from config.dataset import Message, full_prompt
from config.domain import DomainConfig
from train.data.encode import Encoded, encode_prompt, encode_turns, token_ids
from train.data.examples import Example
from train.data.faults import faults_error
from train.data.steps import LENGTHS, Finding, Step, StepResult, finding
from train.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ELLIPSIS = " … "
"""Stands where the middle of a text was cut out."""
CUT_ROLES = ("user", "tool")

_WAY_OUT = "Raise it, shorten those rows, or set `data.cut_long_inputs` to `middle`, `left`, `right` or `drop`."
_BATCH_SIZE = 1000
_PROBE = tuple(Message(role=role, content="x") for role in ("system", "user", "assistant"))


class TooLongError(DataError):
    """A row that does not fit into `recipe.max_length`."""


@dataclass(frozen=True)
class FittedTexts:
    """Texts after cutting, and the sequences that they give."""

    texts: tuple[str, ...]
    sequences: tuple[Encoded, ...]


def fit_texts(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Sequence[Encoded]],
    max_length: int,
    mode: CutMode,
) -> FittedTexts:
    """Cut texts until no sequence that `encode` makes of them exceeds `max_length` tokens.

    Raises:
        TooLongError: They may not be cut, or cutting them does not suffice.
    """
    fitted, dropped = list(texts), [0] * len(texts)
    while True:
        sequences = tuple(encode(fitted))
        excess = max(map(len, sequences)) - max_length
        if excess <= 0:
            return FittedTexts(tuple(fitted), sequences)
        left = [n for n, text in enumerate(texts) if dropped[n] < len(token_ids(tokenizer, text)) - 1]
        if mode in ("drop", "error") or not left:
            what = "tokens" if left else "tokens without the texts that may be cut"
            raise TooLongError(f"has {excess + max_length} {what}, but `recipe.max_length` is {max_length}")
        longest = max(left, key=lambda n: len(fitted[n]))
        dropped[longest] += excess
        fitted[longest] = cut_text(tokenizer, texts[longest], dropped[longest], mode)


def cut_text(tokenizer: "PreTrainedTokenizerBase", text: str, num_dropped: int, mode: CutMode) -> str:
    """A text without some of its tokens, at least one of which stays; no character is broken."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    num_kept = max(len(spans) - num_dropped, 1)
    if mode == "left":
        return text[spans[-num_kept][0] :].lstrip()
    if mode == "right":
        return text[: spans[num_kept - 1][1]].rstrip()
    num_kept = max(num_kept - len(token_ids(tokenizer, ELLIPSIS)), 2)
    num_tail = min((num_kept + 1) // 2, len(spans))
    head, tail = text[: spans[max(num_kept - num_tail - 1, 0)][1]], text[spans[-num_tail][0] :]
    return head.rstrip() + ELLIPSIS + tail.lstrip()


def check_lengths(
    examples: Sequence[Example],
    config: DomainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    at: datetime,
    advance: Callable[[], None] = lambda: None,
) -> StepResult:
    """Find examples over `recipe.max_length` tokens of this base, and drop or refuse them by `data.cut_long_inputs`.

    What is to be cut stays whole here: training cuts it, to the length that its recipe has then.

    Args:
        advance: Called for each example that was checked.

    Raises:
        DataError: Examples do not fit and may not be dropped, or the chat template rejects some.
    """
    kept: list[Example] = []
    findings: list[Finding] = []
    faults: list[tuple[str, DataError]] = []
    for example, may_exceed in zip(examples, _may_exceed(examples, config, tokenizer), strict=True):
        advance()
        try:
            is_cut = may_exceed and fit_example(example, config, tokenizer, at) is not example
        except DataError as error:
            if isinstance(error, TooLongError) and config.data.cut_long_inputs == "drop":
                findings.append(finding(example, str(error)))
            else:
                faults.append((str(example.origin or repr(example.question[:40])), error))
            continue
        kept.append(example)
        if is_cut:
            findings.append(finding(example, f"is cut to {config.recipe.max_length} tokens in training"))
    if faults:
        raise encoding_error(faults)
    return StepResult(tuple(kept), Step(LENGTHS, len(examples), len(kept), 0, tuple(findings)))


def encoding_error(faults: Sequence[tuple[str, DataError]]) -> DataError:
    """One error for all rows that cannot be encoded, each with its name and reason."""
    is_too_long = any(isinstance(error, TooLongError) for _, error in faults)
    return faults_error(
        [f"{name} {error}" for name, error in faults], "Rows that cannot be trained", _WAY_OUT if is_too_long else ""
    )


def fit_example(example: Example, config: DomainConfig, tokenizer: "PreTrainedTokenizerBase", at: datetime) -> Example:
    """The example, cut to `recipe.max_length` tokens; itself if it fits.

    Raises:
        TooLongError: It is too long, and may not be cut or not enough.
        DataError: The chat template rejects it.
    """
    places = [n for n, turn in enumerate(example.prompt) if turn.role in CUT_ROLES]
    texts = tuple(example.prompt[n].content for n in places)

    def prompt(texts: Sequence[str]) -> tuple[Message, ...]:
        return with_texts(example.prompt, dict(zip(places, texts, strict=True)))

    def encode(texts: Sequence[str]) -> list[Encoded]:
        asked = full_prompt(config.chat, prompt(texts))
        answers = [turns for turns in (example.completion, example.chosen, example.rejected) if turns]
        whole = [s for turns in answers for s in encode_turns(tokenizer, (*asked, *turns), at, example.tools)]
        return whole or [Encoded(encode_prompt(tokenizer, asked, at, example.tools), ())]

    fitted = fit_texts(tokenizer, texts, encode, config.recipe.max_length, config.data.cut_long_inputs)
    return example if fitted.texts == texts else replace(example, prompt=prompt(fitted.texts))


def with_texts(turns: Sequence[Message], texts: dict[int, str]) -> tuple[Message, ...]:
    """The turns with the contents of some replaced, by their index."""
    return tuple(turn.model_copy(update={"content": texts[n]}) if n in texts else turn for n, turn in enumerate(turns))


def _may_exceed(
    examples: Sequence[Example], config: DomainConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[bool]:
    """Whether an example can exceed the limit at all, from the tokens of its texts alone; rendering takes longer."""
    try:
        num_own = len(encode_prompt(tokenizer, _PROBE, datetime(2000, 1, 1)))
    except DataError:
        yield from [True] * len(examples)
        return
    for start in range(0, len(examples), _BATCH_SIZE):
        batch = examples[start : start + _BATCH_SIZE]
        texts = ["\n".join(_all_texts(example, config)) for example in batch]
        for example, num_tokens in zip(batch, _token_counts(tokenizer, texts), strict=True):
            num_turns = 1 + len(example.prompt) + len(example.completion) + len(example.chosen)
            yield bool(example.prompt) and num_tokens + num_own * num_turns > config.recipe.max_length


def _token_counts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[int]:
    """Tokens of each text; by the tokenizer in Rust where there is one, for lists of their ids take as long again."""
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if rust is not None:
        return [len(encoding) for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _all_texts(example: Example, config: DomainConfig) -> list[str]:
    turns = (*example.prompt, *example.completion, *max(example.chosen, example.rejected, key=_num_chars))
    calls = [call.model_dump_json() for turn in turns for call in turn.tool_calls]
    return [config.chat.system, config.chat.user, *(turn.content for turn in turns), *calls, *map(str, example.tools)]


def _num_chars(turns: Sequence[Message]) -> int:
    return sum(len(turn.content) for turn in turns)
