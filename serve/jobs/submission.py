"""Create a job from a request: resolve its base, adapter name and files."""

import re
import secrets
import time

from adapters.jobs.records import Job, new_id
from adapters.reference import is_adapter_name
from adapters.store.store import AdapterStore
from config.example_lines import Method
from serve.access.keys import ANONYMOUS, KeyRecord
from serve.access.ownership import ModelAccess
from serve.errors import InvalidRequestError, ModelNotFoundError
from serve.jobs.errors import BaseNotTrainableError
from serve.jobs.examples import ExampleFiles
from serve.jobs.job_request import JobRequest
from serve.jobs.services import JobServices
from serve.routing.resolver import Resolver

_SUFFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_MAX_NAME_CHARS = 63
_MAX_SEED = 2**31


class InvalidSuffixError(InvalidRequestError):
    """A suffix that cannot name a model."""

    code = "invalid_suffix"

    def __init__(self, message: str) -> None:
        super().__init__(message, "suffix")


class JobSubmission:
    """Checks requests for jobs and adds jobs to the queue.

    Args:
        base: Name of the prepared base that is served.
        base_name: Its name for clients.
    """

    def __init__(
        self,
        services: JobServices,
        examples: ExampleFiles,
        store: AdapterStore,
        resolver: Resolver,
        access: ModelAccess,
        *,
        base: str,
        base_name: str,
    ) -> None:
        self._services = services
        self._examples = examples
        self._store = store
        self._resolver = resolver
        self._access = access
        self._base = base
        self._base_name = base_name

    def submit(self, wanted: JobRequest, key: KeyRecord) -> Job:
        """Check everything, then add the job. Blocks on disk access.

        Raises:
            InvalidRequestError: The base, a file, the suffix or a grader's model cannot be used.
            JobsError: A file is unknown, or the tenant has too many jobs.
        """
        method = wanted.resolved_method()
        from_version = self._from_version(wanted.model, key)
        for model in wanted.grader_models():
            self._check_grader_model(model, key)
        self._check_files(wanted, method["type"], key)
        job_id = new_id("ftjob-")
        job = Job(
            id=job_id,
            owner=key.tenant,
            key_id=key.id,
            model=wanted.model,
            base=self._base,
            base_name=self._base_name,
            adapter=self._adapter_name(wanted.suffix, job_id, key),
            from_version=from_version,
            training_file=wanted.training_file,
            validation_file=wanted.validation_file,
            suffix=wanted.suffix or None,
            seed=secrets.randbelow(_MAX_SEED) if wanted.seed is None else wanted.seed,
            metadata=wanted.metadata,
            method=method,
            lorikeet=wanted.lorikeet,
            created_at=int(time.time()),
        )
        return self._services.queue.submit(job, max_unfinished=self._services.config.max_jobs_per_tenant)

    def _from_version(self, model: str, key: KeyRecord) -> str | None:
        """The version to continue from; None: the base."""
        if model in (self._base, self._base_name) and self._access.may_use(key, self._base_name):
            return None
        try:
            target = self._resolver.model(model, lambda name: self._access.may_use(key, name)).target
        except ModelNotFoundError:
            target = None
        if target is None:
            raise BaseNotTrainableError(
                f"The model {model[:80]!r} is not available for fine-tuning or does not exist. Use "
                f"{self._base_name!r}, or a model of GET /v1/models.",
                "model",
            )
        return str(target)

    def _check_grader_model(self, model: str, key: KeyRecord) -> None:
        """Graders may call only models of this server that the job's tenant may use."""
        try:
            self._resolver.model(model, lambda name: self._access.may_use(key, name))
        except ModelNotFoundError as error:
            raise InvalidRequestError(str(error), "method.reinforcement.grader.model") from None

    def _check_files(self, wanted: JobRequest, method: Method, key: KeyRecord) -> None:
        self._examples.check(key.tenant, wanted.training_file, "training_file", method)
        if wanted.validation_file is not None:
            self._examples.check(key.tenant, wanted.validation_file, "validation_file", method)

    def _adapter_name(self, suffix: str | None, job_id: str, key: KeyRecord) -> str:
        """The adapter's name; with an API key, it begins with the tenant's name."""
        plain = suffix.lower() if suffix else f"ft-{job_id[-6:]}"
        tenant = "" if key is ANONYMOUS else re.sub(r"[^a-z0-9]+", "-", key.tenant.lower()).strip("-") + "-"
        most = _MAX_NAME_CHARS - len(tenant)
        if _SUFFIX.fullmatch(plain) is None:
            raise InvalidSuffixError(
                f"`suffix` must have letters, digits and hyphens only, and begin and end with a letter or digit. "
                f"Got {(suffix or '')[:80]!r}."
            )
        if len(plain) > most:
            raise InvalidSuffixError(f"`suffix` must have at most {most} characters. Got {len(plain)}.")
        name = tenant + plain
        assert is_adapter_name(name)
        if name in (self._base, self._base_name):  # who owned that name would own the base
            raise InvalidSuffixError(f"The suffix {plain!r} makes the name of a base model. Choose another one.")
        if key is not ANONYMOUS and self._services.names.owner_of(name) != key.tenant and self._store.versions(name):
            raise InvalidSuffixError(f"The suffix {plain!r} is taken by another adapter. Choose another one.")
        return name
