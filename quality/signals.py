"""Quality signals of one generation without a reference answer, cheap enough for every request."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from quality.scorers import AnswerFormat, is_exact_match

_REPEAT_N = 4

# Of answers, not of training data: most 4-grams again, or, where a loop has no words, zlib finds little that is new.
_REPETITIVE_SEQ_REP = 0.5
_REPETITIVE_COMPRESSION = 8.0

# How chat models open a refusal (after the refusal prefixes of Zou et al. 2023, "Universal and transferable
# adversarial attacks on aligned language models").
_REFUSAL = re.compile(
    r"\W*(?:"
    r"(?:i am|i'm|im) (?:\w+ )?sorry|sorry(?=[,.!])|my apologies|i apologi[sz]e"
    r"|(?:unfortunately,? )?i (?:cannot|can't|can not|could not|am unable|am not able|won't|will not|must decline)"
    r"|i'm (?:unable|not able)"
    r"|as an (?:ai|artificial intelligence|(?:large )?language model)"
    r")\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Signals:
    """Features of one answer."""

    num_chars: int
    num_words: int
    num_tokens: int
    mean_logprob: float | None
    """Nats per token, over the finite ones; None without any."""
    seq_rep_4: float
    """Share of word 4-grams that occurred before in the answer, 0 to 1 (Welleck et al. 2020); 0 below four words."""
    compression_ratio: float
    """UTF-8 bytes by zlib-compressed bytes (Radford et al. 2022 distrust a transcript above 2.4): repetition without
    words, too. Below 1 for short text, 0 for none."""
    is_refusal: bool
    """It opens as refusals do, or is the domain's agreed refusal."""
    is_valid_format: bool | None
    """None where the domain has no format."""
    finish_reason: str | None
    """The engine's word: "stop", "length", "abort"..."""

    @property
    def is_repetitive(self) -> bool:
        """More than half of its 4-grams occurred before, or it compresses to less than an eighth."""
        return self.seq_rep_4 > _REPETITIVE_SEQ_REP or self.compression_ratio > _REPETITIVE_COMPRESSION


def signals_of(
    text: str,
    *,
    num_tokens: int,
    finish_reason: str | None,
    token_logprobs: Sequence[float] = (),
    answer_format: AnswerFormat | None = None,
    refusal: str | None = None,
) -> Signals:
    """Compute the signals of one answer.

    Args:
        token_logprobs: (T,) of the generated tokens, nats.
        answer_format: The domain's answer format.
        refusal: The domain's expected answer to an out-of-scope input.
    """
    words = text.split()
    return Signals(
        num_chars=len(text),
        num_words=len(words),
        num_tokens=num_tokens,
        mean_logprob=mean_logprob(token_logprobs),
        seq_rep_4=seq_rep(words, _REPEAT_N),
        compression_ratio=compression_ratio(text),
        is_refusal=is_refusal(text) or (refusal is not None and is_exact_match(text, refusal)),
        is_valid_format=None if answer_format is None else answer_format.accepts(text),
        finish_reason=finish_reason,
    )


def mean_logprob(token_logprobs: Sequence[float]) -> float | None:
    """Mean of the finite ones, nats per token; None without any."""
    finite = [logprob for logprob in token_logprobs if isfinite(logprob)]
    return sum(finite) / len(finite) if finite else None


def seq_rep(tokens: Sequence[str], n: int) -> float:
    """1 - distinct n-grams / n-grams: 0 when none repeats, towards 1 in a loop; 0 for fewer than n tokens."""
    ngrams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def compression_ratio(text: str) -> float:
    """UTF-8 bytes by zlib-compressed bytes; 0 for no text."""
    content = text.encode(errors="surrogatepass")
    return len(content) / len(zlib.compress(content)) if content else 0.0


def is_refusal(text: str) -> bool:
    """Whether the text opens as refusals do, in English."""
    return _REFUSAL.match(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None
