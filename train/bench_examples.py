"""Synthetic examples of `lorikeet bench train`, the same for all sides."""

import json
import random
from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from config.dataset import Message
from train.data.encode import Encoded, encode
from train.data.general import FORGETTING_TEXT

NUM_EXAMPLES = 512
_INSTRUCTION = 'Topic of the text, as JSON {"topic": "..."}. The text comes from a book; write nothing else but that.'
TOPICS = ("a river", "the sea", "a war", "machines", "the law", "a garden", "stars", "trade")
TEMPLATE_TIME = datetime(2026, 1, 1)


@dataclass(frozen=True)
class BatchShape:
    """Tokens of a batch, without padding.

    Attributes:
        num_tokens: Tokens of all rows.
        num_distinct: `num_tokens` with the prefix shared by all rows counted once.
        num_answer_tokens: Tokens that the loss covers.
    """

    num_tokens: int
    num_distinct: int
    num_answer_tokens: int


def examples(tokenizer: PreTrainedTokenizerBase, data: str, seed: int = 13) -> list[Encoded]:
    """The same for all sides. `shared`: one system prompt for all examples; `own`: a different text for each."""
    rng = random.Random(seed)
    words = FORGETTING_TEXT.split()
    return [_example(tokenizer, words, data, rng) for _ in range(NUM_EXAMPLES)]


def _example(tokenizer: PreTrainedTokenizerBase, words: list[str], data: str, rng: random.Random) -> Encoded:
    return encode(tokenizer, conversation(words, data, rng), TEMPLATE_TIME)


def conversation(words: list[str], data: str, rng: random.Random) -> tuple[Message, Message, Message]:
    """System prompt, question and right answer."""
    topic = rng.randrange(len(TOPICS))
    text = " ".join(rng.choices(words, k=rng.randint(6, 18)))
    system = _INSTRUCTION if data == "shared" else " ".join(rng.choices(words, k=len(_INSTRUCTION.split())))
    return (
        Message(role="system", content=system),
        Message(role="user", content=f"{words[topic]} {text}"),
        Message(role="assistant", content=json.dumps({"topic": TOPICS[topic]})),
    )
