"""Embeddings of questions by the packaged MiniLM, for the checks that look at meaning (extra `embeddings`)."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quality import embedding
from train.data.examples import Example
from train.errors import DataError

Vectors = NDArray[np.float32]  # (N, D), rows of length 1

MAX_ROWS = 2000
"""Embedding takes about 10 ms a row on two CPU cores; of more rows, so many are drawn evenly."""

_BATCH = 256
_MAX_CHARS = 1000  # the model reads 256 tokens


@dataclass(frozen=True)
class EmbeddedExamples:
    """Some of `num_rows` examples with the embeddings of their questions."""

    examples: tuple[Example, ...]
    vectors: Vectors
    num_rows: int


def embed_questions(
    examples: Sequence[Example], max_rows: int = MAX_ROWS, advance: Callable[[int], None] = lambda count: None
) -> EmbeddedExamples:
    """Embed the questions of at most `max_rows` examples, drawn evenly over all.

    Args:
        advance: Called as examples are embedded, with their number.

    Raises:
        DataError: The extra `embeddings` is not installed.
    """
    missing = missing_packages()
    if missing:
        raise DataError(
            f"Label errors need {' and '.join(missing)}, not installed: run `pip install 'lorikeet[embeddings]'`, or "
            "remove the gate `max_label_errors`."
        )
    picked = tuple(examples[index] for index in _evenly(len(examples), max_rows))
    texts = [(example.question or example.text)[:_MAX_CHARS] for example in picked]
    vectors = []
    for start in range(0, len(texts), _BATCH):
        vectors.append(embedding.embed(texts[start : start + _BATCH]))
        advance(len(vectors[-1]))
    return EmbeddedExamples(picked, np.concatenate(vectors), len(examples))


def missing_packages() -> list[str]:
    """Packages of the extra `embeddings` that are not installed."""
    has_cleanlab = importlib.util.find_spec("cleanlab") is not None
    return embedding.missing_packages() + ([] if has_cleanlab else ["cleanlab"])


def _evenly(num_rows: int, most: int) -> list[int]:
    if num_rows <= most:
        return list(range(num_rows))
    return [int(index) for index in np.linspace(0, num_rows - 1, most).round()]
