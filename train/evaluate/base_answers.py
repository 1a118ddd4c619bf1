"""What a base answered in earlier trainings, so that the next one does not ask it the same again."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from adapters.store.durable import replace_file
from train.methods.method import Trainable

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raise it when the same questions get other answers by a change of this code."""


class BaseAnswers:
    """Answers of one base, a file for each set of questions, readable by its owner only.

    Those of another base, number format or release of torch or transformers are not used.

    Args:
        folder: Created if missing; one for all bases.
        digest: Of the base.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self._digest = digest

    def of(
        self, model: Trainable, asked: Any, ask: Callable[[], Any], on_kept: Callable[[], None] = lambda: None
    ) -> Any:
        """The kept answers, or those of `ask`, which are kept.

        Args:
            model: With the base's weights.
            asked: All that the answers depend on beside the model, as JSON; None: they are not kept.
            ask: Returns JSON.
            on_kept: Called if the base is not asked.
        """
        if asked is None:
            return ask()
        path = self._folder / f"{self._key(model, asked)}.json"
        try:
            answers = json.loads(path.read_bytes())
        except (OSError, ValueError):  # missing, or damaged
            answers = ask()
        else:
            on_kept()
            return answers
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, json.dumps(answers).encode(), mode=0o600)
        except OSError as error:
            logger.warning("the base's answers are not kept: %s", error)
        return answers

    def _key(self, model: Trainable, asked: Any) -> str:
        formats = sorted({str(parameter.dtype) for parameter in model.parameters()})
        versions = (_FORMAT, torch.__version__, transformers.__version__)
        text = json.dumps((self._digest, formats, versions, asked), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
