"""Remove a version that a job has made and that is not in use."""

import asyncio

from adapters.errors import AdapterError
from adapters.jobs.models import MODEL_PREFIX
from adapters.jobs.records import UNFINISHED_JOB, TunedModel
from adapters.reference import Target, parse_reference
from adapters.store.store import AdapterStore
from serve.access.keys import KeyRecord
from serve.errors import ConflictError, ModelNotFoundError, answer_of_store
from serve.jobs.services import JobServices
from serve.residency.residency import Residency


class ModelDeletion:
    """Removes versions of a tenant's own jobs."""

    def __init__(self, services: JobServices, store: AdapterStore, residency: Residency) -> None:
        self._services = services
        self._store = store
        self._residency = residency

    async def delete(self, name: str, key: KeyRecord) -> None:
        """Remove a version and all its names. Its aliases move back to their previous versions, or are removed.

        Args:
            name: `ft:…`.

        Raises:
            ModelNotFoundError: No such model, or another tenant's.
            ConflictError: A trial, a pin, a request, a job or another server uses it.
        """
        model = self._services.names.find(name) if name.startswith(MODEL_PREFIX) else None
        if model is None or model.owner != key.tenant:
            raise ModelNotFoundError(f"There is no fine-tuned model {name[:120]!r}. GET /v1/models lists yours.")
        reference = parse_reference(model.version)
        assert reference.version is not None
        target = Target(reference.name, reference.version)
        await self._services.run(self._check_unused, target)
        await self._residency.unload(target)
        await asyncio.to_thread(self._remove, target, key)
        await self._services.run(self._forget, model)

    def _check_unused(self, target: Target) -> None:
        """Check before unloading, so that a refused deletion changes nothing."""
        resident = self._residency.residents.get(target)
        if resident is not None and resident.in_flight:
            raise ConflictError(
                f"{str(target)!r} is answering {resident.in_flight} requests. Retry when they are done."
            )
        if target.version in self._store.pins(target.name):
            raise ConflictError(f"{str(target)!r} is pinned. Ask the operator of this server to unpin it.")
        waiting = self._services.queue.list(None, statuses=UNFINISHED_JOB, from_version=str(target), limit=1).items
        if waiting:
            raise ConflictError(
                f"Job {waiting[0].id} continues from {str(target)!r}. Cancel that job, or wait for its end."
            )
        trial = self._store.trial(target.name)
        if trial is not None and target.version in (trial.stable, trial.canary):
            raise ConflictError(f"{str(target)!r} takes part in a canary trial. Retry after the verdict.")

    def _remove(self, target: Target, key: KeyRecord) -> None:
        if not self._store.has_version(target):  # only its name is left
            return
        try:
            reason = f"deleted by {key.tenant} (key {key.id})"
            self._store.remove(target, reason=reason, ends_aliases=True)
        except AdapterError as error:
            raise answer_of_store(error) from None

    def _forget(self, model: TunedModel) -> None:
        for name in self._services.names.names_of(model.version):
            self._services.names.remove(model.owner, name)
