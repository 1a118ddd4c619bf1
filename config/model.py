"""Base class of all configuration models."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def _let_default_follow(self, key: str, value: Any) -> None:
        """Replace the default of a key with one derived from other keys; an explicitly set key keeps its value.

        Only for "after" validators, before the frozen model is used.
        """
        if key not in self.model_fields_set:
            object.__setattr__(self, key, value)
