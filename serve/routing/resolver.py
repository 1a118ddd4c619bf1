"""Resolve the `model` of a request to the base model or one immutable adapter version."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from adapters.errors import AdapterError, InvalidReferenceError
from adapters.jobs.models import MODEL_PREFIX
from adapters.jobs.records import Page, TunedModel
from adapters.reference import DEFAULT_ALIAS, Target, parse_reference
from adapters.release.traffic import CANARY_ALIAS, choose
from adapters.store.history import published_versions, removed_versions
from adapters.store.manifest import RequestDefaults
from adapters.store.store import AdapterStore
from serve.errors import InvalidRequestError, ModelNotFoundError

Permission = Callable[[str], bool]
"""Whether a client may use the adapter, or the base, of this name."""


class TunedNames(Protocol):
    """The names `ft:…` of models that jobs have made."""

    def find(self, name: str) -> TunedModel | None: ...

    def list(self, owner: str | None) -> Page[TunedModel]: ...


@dataclass(frozen=True)
class Resolution:
    """What answers a request (None: the base model), and which version gets a copy of it."""

    served_name: str
    target: Target | None = None
    shadow: Target | None = None


@dataclass(frozen=True)
class ServedModel:
    """One row of `/v1/models`: a reference that a client may send, and what it means now."""

    reference: str
    target: Target | None


@dataclass(frozen=True)
class _Facts:
    """What requests need of a version's manifest; `base_digest` is None if it is not available locally."""

    defaults: RequestDefaults | None = None
    num_virtual_tokens: int = 0
    base_digest: str | None = None


class Resolver:
    """Resolves references against the store as it is now; an unknown name never reaches the engine.

    Args:
        has_remote: Versions that the store's history names may still have to be fetched.
        tuned: Names of fine-tuned models; each stands for a version.
    """

    def __init__(
        self, store: AdapterStore, base_name: str, *, has_remote: bool = False, tuned: TunedNames | None = None
    ) -> None:
        self._store = store
        self._base_name = base_name
        self._has_remote = has_remote
        self._tuned = tuned
        self._known: dict[Target, _Facts] = {}
        self._published_at: dict[Target, str] = {}

    def resolve(self, model: object, may_use: Permission, sticky_key: str) -> Resolution:
        """The version that a reference means for this request.

        Args:
            sticky_key: Requests of one key get the same side of a canary split.

        Raises:
            InvalidRequestError: `model` is not a string.
            ModelNotFoundError: Unknown or not allowed for this client; both give the same response.
        """
        if not isinstance(model, str) or not model:
            raise InvalidRequestError("`model` must name the base model or an adapter.", param="model")
        reference = self._reference(model)
        if not may_use(reference):
            raise _not_found(model)
        if reference == self._base_name:
            return Resolution(self._base_name)
        try:
            resolution = self._find(reference, sticky_key)
        except InvalidReferenceError:
            raise _not_found(model) from None
        if resolution.target is None or not self._exists(resolution.target):
            raise _not_found(model)
        return resolution

    def models(self, may_use: Permission) -> list[ServedModel]:
        """Every reference that a client can ask for: the base, then each adapter's aliases and versions."""
        rows = [ServedModel(self._base_name, None)] if may_use(self._base_name) else []
        for name in filter(may_use, self._store.names()):
            for alias, version in sorted(self._store.aliases(name).items()):
                reference = name if alias == DEFAULT_ALIAS else f"{name}@{alias}"
                rows.append(ServedModel(reference, Target(name, version)))
            rows += [ServedModel(f"{name}@{version}", Target(name, version)) for version in self._store.versions(name)]
        return rows + self._tuned_models(may_use)

    def model(self, reference: str, may_use: Permission) -> ServedModel:
        """One row of `models`, found without the others.

        Raises:
            ModelNotFoundError: Unknown, or not allowed for this client.
        """
        meant = self._reference(reference)
        if not may_use(meant):
            raise _not_found(reference)
        if meant == self._base_name:
            return ServedModel(reference, None)
        try:
            target = self._recorded(meant)
        except InvalidReferenceError:
            raise _not_found(reference) from None
        if not self._exists(target):
            raise _not_found(reference)
        return ServedModel(reference, target)

    def defaults(self, target: Target) -> RequestDefaults | None:
        """Request defaults of a version; None also if its manifest is not available locally."""
        return self._facts(target).defaults

    def num_virtual_tokens(self, target: Target) -> int:
        """Virtual tokens in front of each of its prompts; 0 also if its manifest is not available locally."""
        return self._facts(target).num_virtual_tokens

    def base_digest(self, target: Target) -> str | None:
        """Digest of the base that a version was trained on; None if its manifest is not available locally."""
        return self._facts(target).base_digest

    def published_at(self, target: Target) -> str | None:
        """Publication time of a version from the history, UTC, ISO 8601; None if unknown."""
        if target not in self._published_at:
            published = [event for event in self._store.history(target.name) if event.kind == "published"]
            self._published_at |= {Target(target.name, event.version): event.at for event in published if event.version}
        return self._published_at.get(target)

    def _facts(self, target: Target) -> _Facts:
        if target not in self._known:
            try:
                manifest = self._store.manifest(target)
            except (AdapterError, OSError):  # also of one that is removed at this moment
                return _Facts()
            facts = _Facts(manifest.defaults, manifest.lora.num_virtual_tokens, manifest.base.digest)
            self._known[target] = facts  # versions never change
        return self._known[target]

    def _reference(self, model: str) -> str:
        """The version that a name `ft:…` stands for; any other text as it is."""
        tuned = self._tuned.find(model) if self._tuned is not None and model.startswith(MODEL_PREFIX) else None
        return model if tuned is None else tuned.version

    def _tuned_models(self, may_use: Permission) -> list[ServedModel]:
        found = self._tuned.list(None).items if self._tuned is not None else ()
        rows = [ServedModel(tuned.name, self._recorded(tuned.version)) for tuned in found if may_use(tuned.version)]
        return [row for row in rows if row.target is not None and self._exists(row.target)]

    def _recorded(self, text: str) -> Target:
        """What a reference means by the history; the store's own `recorded` lists all adapters for its message."""
        reference = parse_reference(text)
        version = reference.version or self._store.state(reference.name).aliases.get(reference.alias or DEFAULT_ALIAS)
        if version is None:
            raise _not_found(text)
        return Target(reference.name, version)

    def _find(self, model: str, sticky_key: str) -> Resolution:
        if "@" in model:
            target = self._recorded(model)
            return Resolution(str(target), target)
        state = self._store.state(model)
        stable, canary = state.aliases.get(DEFAULT_ALIAS), state.aliases.get(CANARY_ALIAS)
        if stable is None:
            raise _not_found(model)
        if state.split.is_shadow and canary is not None and canary != stable:
            return Resolution(f"{model}@{stable}", Target(model, stable), shadow=Target(model, canary))
        chosen = Target(model, state.aliases[choose(state.split, state.aliases, sticky_key, salt=model)])
        return Resolution(str(chosen), chosen)

    def _exists(self, target: Target) -> bool:
        if self._store.has_version(target):
            return True
        history = self._store.history(target.name) if self._has_remote else ()
        return target.version in published_versions(history) - removed_versions(history)


def _not_found(model: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"The model {model[:80]!r} does not exist. GET /v1/models lists the available models.")
