"""Near copies by meaning: cosine similarity of MiniLM embeddings (extra `embeddings`)."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quality.embedding import embed, missing_packages
from train.errors import DataError

_BLOCK = 1024


def similar_by_meaning(texts: Sequence[str], others: Sequence[str], least: float) -> dict[int, tuple[int, float]]:
    """For each text with a similar one among `others`: the most similar one, and the cosine similarity.

    Raises:
        DataError: The extra is not installed.
    """
    if not texts or not others:
        return {}
    ours, theirs = _embedded(texts), _embedded(others)
    found = {}
    for start in range(0, len(ours), _BLOCK):
        scores = ours[start : start + _BLOCK] @ theirs.T
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
    vectors = _embedded(texts)
    for start in range(0, len(vectors), _BLOCK):
        scores = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T
        for row, other in zip(*np.nonzero(scores >= least), strict=True):
            if other < start + row:
                yield int(start + row), int(other)


def _embedded(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    if missing := missing_packages():
        raise DataError(
            f"`data.cleaning.near_duplicate_cosine` is set, but {' and '.join(missing)} is not installed. "
            "Install it (`pip install 'lorikeet[embeddings]'`), or set near_duplicate_cosine: null."
        )
    return embed(texts)
