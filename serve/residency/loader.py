"""Connects admission, which names adapters, to residency, which loads versions."""

from contextlib import AbstractContextManager

from adapters.reference import Target
from serve.residency.residency import Residency


class ResidencyLoader:
    """Admission's `Loader`."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    def is_resident(self, adapter: str) -> bool:
        return self._residency.is_resident(_target(adapter))

    def keep(self, adapter: str) -> AbstractContextManager[None]:
        return self._residency.wanting(_target(adapter))

    async def load(self, adapter: str) -> None:
        await self._residency.load(_target(adapter))


def _target(adapter: str) -> Target:
    name, _, version = adapter.partition("@")
    return Target(name, int(version))
