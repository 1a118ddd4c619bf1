"""Entries of `/v1/models`: OpenAI's fields, vLLM's, and a version's request defaults."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from serve.routing.resolver import Permission, Resolver, ServedModel


class ModelCard(BaseModel):
    """A name that requests may give as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(
        description="Time at which the version was published, or the base prepared; Unix time, seconds."
    )
    owned_by: Literal["lorikeet"] = "lorikeet"
    root: str = Field(
        description="The version that the name currently resolves to, as medical@3; for the base, its own name."
    )
    parent: str | None = Field(description="The base's name; null for the base.")
    max_model_len: int = Field(description="Context length: tokens of prompt and answer together.")
    defaults: dict[str, Any] | None = Field(
        description="Request defaults of the version: what it fills in where a request leaves a field out."
    )


class ModelList(BaseModel):
    """The models that a client may use."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelCards:
    """Writes the cards of one server.

    Args:
        prepared_at: When the base was prepared; UTC, ISO 8601.
    """

    def __init__(self, resolver: Resolver, base_name: str, prepared_at: str, max_model_len: int) -> None:
        self._resolver = resolver
        self._base_name = base_name
        self._prepared_s = _unix_s(prepared_at)
        self._max_model_len = max_model_len

    def all(self, may_use: Permission) -> ModelList:
        """Cards of all references that a client may use."""
        return ModelList(data=[self._card(model) for model in self._resolver.models(may_use)])

    def one(self, reference: str, may_use: Permission) -> ModelCard:
        """Raises ModelNotFoundError if the reference is unknown or not allowed for this client."""
        return self._card(self._resolver.model(reference, may_use))

    def _card(self, model: ServedModel) -> ModelCard:
        target = model.target
        defaults = self._resolver.defaults(target) if target else None
        num_virtual = self._resolver.num_virtual_tokens(target) if target else 0
        return ModelCard(
            id=model.reference,
            created=_unix_s(self._resolver.published_at(target)) if target else self._prepared_s,
            root=str(target) if target else model.reference,
            parent=self._base_name if target else None,
            max_model_len=self._max_model_len - num_virtual,
            defaults=defaults.given if defaults else None,
        )


def _unix_s(at: str | None) -> int:
    """0 if the time is missing or malformed."""
    try:
        moment = datetime.fromisoformat(at or "")
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
