"""What every configuration model has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def _let_default_follow(self, key: str, value: Any) -> None:
        """Replace the default of a key by one that fits the keys that were set; a key that was set keeps its value.

        For "after" validators, before anybody else has the frozen model.
        """
        if key not in self.model_fields_set:
            object.__setattr__(self, key, value)
