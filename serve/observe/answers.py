"""Expected answer format of each loaded version, from its manifest."""

import json
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from adapters.reference import Target
from adapters.store.manifest import Manifest
from quality.scorers import AnswerFormat
from serve.records import GenerationRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerRules:
    """`refusal` is the agreed answer to an out-of-scope input."""

    format: AnswerFormat | None
    refusal: str | None


_NO_RULES = AnswerRules(None, None)


class KnownAnswers:
    """The rules by `lora_name`, and the last answers held against them: several who ask cost one check."""

    def __init__(self) -> None:
        self._rules: dict[str, AnswerRules] = {}
        self._last: tuple[GenerationRecord, tuple[bool, ...]] | None = None

    def learn(self, manifest: Manifest) -> None:
        rules = manifest.quality
        try:
            answer_format = _format_of(manifest.answer_schema, rules.answer_pattern if rules else None)
        except re.error as error:  # published before such patterns were refused
            logger.warning("The format of %s's answers is not checked: %s", manifest.lora_name, error)
            answer_format = None
        self._rules[manifest.lora_name] = AnswerRules(answer_format, rules.refusal if rules else None)

    def forget(self, target: Target) -> None:
        self._rules.pop(str(target), None)

    def refusal(self, lora_name: str | None) -> str | None:
        return self._rules.get(lora_name or "", _NO_RULES).refusal

    def valid_format(self, record: GenerationRecord) -> tuple[bool, ...]:
        """For each answer whether it has the format; nothing where the version has none."""
        if self._last is not None and self._last[0] is record:
            return self._last[1]
        answer_format = self._rules.get(record.lora_name or "", _NO_RULES).format
        valid = tuple(map(answer_format.accepts, record.texts)) if answer_format else ()
        self._last = record, valid
        return valid


def _format_of(schema: dict[str, Any] | None, pattern: str | None) -> AnswerFormat | None:
    if schema is None and pattern is None:
        return None
    return _known_format(json.dumps(schema), pattern)


@lru_cache(maxsize=256)
def _known_format(schema_json: str, pattern: str | None) -> AnswerFormat:
    """Kept, for to check the schema itself is half of what a load costs this process beside the engine."""
    return AnswerFormat(json.loads(schema_json), pattern)
