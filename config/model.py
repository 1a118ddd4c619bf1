"""Base class of all configuration models."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """Frozen model that rejects unknown keys, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _let_default_follow(self, key: str, value: Any) -> None:
        """Replace the default of a key with one derived from other keys; an explicitly set key keeps its value.

        Only for "after" validators, before the frozen model is used.
        """
        if key not in self.model_fields_set:
            object.__setattr__(self, key, value)


def named_settings(default: str) -> BeforeValidator:
    """Take `dpo` as `{name: dpo}`, and settings without a name as those of `default`."""

    def with_name(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default} | value if isinstance(value, dict) else value

    return BeforeValidator(with_name)
