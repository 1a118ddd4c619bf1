"""From the `model` of a request to what answers it: the base model, or one immutable adapter version."""

import asyncio
from dataclasses import dataclass

from adapters.errors import AdapterNotFoundError, InvalidReferenceError
from adapters.manifest import Manifest
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.store import AdapterStore
from serve.errors import InvalidRequestError, ModelNotFoundError
from serve.residency import Residency


@dataclass(frozen=True)
class Resolved:
    """What answers a request. `manifest` is None for the base model."""

    served_name: str
    manifest: Manifest | None
    is_cold: bool

    @property
    def headers(self) -> dict[str, str]:
        digest = self.manifest.digest if self.manifest else "base"
        return {
            "x-lorikeet-adapter": self.served_name,
            "x-lorikeet-digest": digest,
            "x-lorikeet-cold": str(int(self.is_cold)),
        }


@dataclass(frozen=True)
class ServedModel:
    """One row of `/v1/models`: a reference that a client may send, and what it means now."""

    reference: str
    target: Target | None


class Resolver:
    """Resolves references against the store as it is now; an unknown name never reaches the engine."""

    def __init__(self, store: AdapterStore, residency: Residency, base_name: str) -> None:
        self._store = store
        self._residency = residency
        self._base_name = base_name

    async def resolve(self, model: object) -> Resolved:
        """Resolve and make resident.

        Raises:
            InvalidRequestError: `model` is no string.
            ModelNotFoundError: It names nothing.
            AdapterRefusedError: It names a version that failed its checks.
        """
        if not isinstance(model, str) or not model:
            raise InvalidRequestError("`model` must name the base model or an adapter.", param="model")
        if model == self._base_name:
            return Resolved(self._base_name, None, is_cold=False)
        target = await asyncio.to_thread(self._find, model)
        manifest, is_cold = await self._residency.ensure(target)
        return Resolved(str(target), manifest, is_cold)

    def models(self) -> list[ServedModel]:
        """Every reference that can be asked for: the base, then each adapter's aliases and versions."""
        rows = [ServedModel(self._base_name, None)]
        for name in self._store.names():
            for alias, version in sorted(self._store.aliases(name).items()):
                reference = name if alias == DEFAULT_ALIAS else f"{name}@{alias}"
                rows.append(ServedModel(reference, Target(name, version)))
            for version in self._store.versions(name):
                rows.append(ServedModel(f"{name}@{version}", Target(name, version)))
        return rows

    def _find(self, model: str) -> Target:
        try:
            return self._store.resolve(model)
        except (AdapterNotFoundError, InvalidReferenceError):
            raise ModelNotFoundError(
                f"The model {model[:80]!r} does not exist. GET /v1/models lists what does."
            ) from None
