"""Model references as clients write them: `medical`, `medical@3`, `medical@canary`."""

import re
from dataclasses import dataclass

from adapters.errors import InvalidReferenceError

NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
DEFAULT_ALIAS = "stable"

_REFERENCE = re.compile(rf"({NAME_PATTERN})(?:@(?:([1-9][0-9]{{0,8}})|([a-z][a-z0-9-]{{0,30}})))?")


@dataclass(frozen=True)
class Reference:
    """A parsed model reference: a name with either a version or an alias."""

    name: str
    version: int | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Target:
    """One immutable version; `str()` is vLLM's `lora_name`, e.g. `medical@3`."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def is_adapter_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


def parse_reference(text: str) -> Reference:
    """Parse a model reference; a bare name means its `stable` alias.

    Raises:
        InvalidReferenceError: Not of the form `name`, `name@version` or `name@alias`.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidReferenceError(
            f"{text[:80]!r} is not a model reference. Write `name`, `name@3` or `name@stable` "
            "(lower-case letters, digits and dashes)."
        )
    name, version, alias = match.groups()
    if version is not None:
        return Reference(name, version=int(version))
    return Reference(name, alias=alias or DEFAULT_ALIAS)


def parse_alias(name: str, alias: str) -> Reference:
    """Build a reference from an adapter's name and an alias.

    Raises:
        InvalidReferenceError: Not an adapter or alias name; `3` is a version, not an alias.
    """
    reference = parse_reference(f"{name}@{alias}")
    if reference.alias != alias:
        raise InvalidReferenceError(f"{alias[:80]!r} is not a valid alias. Write a word like `stable` or `canary`.")
    return reference
