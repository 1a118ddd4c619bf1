"""API keys: a file that holds the SHA-256 of tokens, never the tokens, and the ring that authenticates by it."""

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from adapters.store.durable import file_lock, replace_file
from config.errors import ConfigError
from config.model import Config
from serve.errors import UnauthorizedError

logger = logging.getLogger(__name__)

_TOKEN_PREFIX = "lk-"
_TOKEN = re.compile(rf"{_TOKEN_PREFIX}[A-Za-z0-9_-]{{43}}")


class KeyGrant(Config):
    """Owner and permissions of a key; None: no limit."""

    tenant: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Owner of the key. Fairness is between tenants; a tenant may have several keys.",
    )
    adapters: tuple[str, ...] = Field(
        ("*",), min_length=1, description="Glob patterns of adapter names and of the base model's served name."
    )
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="Prompt and completion tokens together.")
    max_concurrency: int | None = Field(None, ge=1, description="Concurrent requests.")
    priority: int = Field(0, description="Scheduling priority, lower first (as in vLLM).")
    is_admin: bool = False
    may_train: bool = Field(False, description="Whether the key may upload files and run jobs.")

    @field_validator("adapters")
    @classmethod
    def _globs_are_without_version(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        for glob in globs:
            if not glob or "@" in glob:
                raise ValueError(
                    f"{glob!r} cannot match any name; write a pattern without version or alias, e.g. 'med-*'"
                )
        return globs


class KeyRecord(KeyGrant):
    """One key as it is stored."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$", description="Public identifier of the key; not secret.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False, description="Of the token.")
    created_at: str = Field(description="UTC, ISO 8601.")
    revoked_at: str | None = None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None


class KeyFile(Config):
    """The document that a key file holds."""

    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _every_key_is_there_once(self) -> "KeyFile":
        for name, values in (("id", [key.id for key in self.keys]), ("sha256", [key.sha256 for key in self.keys])):
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same `{name}`; remove one of them")
        return self


@dataclass(frozen=True)
class CreatedKey:
    """A new key. Only here is its token known."""

    record: KeyRecord
    token: str = field(repr=False)


ANONYMOUS = KeyRecord(
    id="0" * 8,
    sha256="0" * 64,
    tenant="anonymous",
    is_admin=True,
    may_train=True,
    created_at="1970-01-01T00:00:00+00:00",
)
"""Key of all requests if no key file is configured; it allows everything."""


class KeyRing:
    """Authenticates requests by a key file, and follows its changes while the server runs.

    A change that breaks the file, or removes it, leaves the last good keys in force and is logged once.

    Args:
        path: The key file; None where there is none, and everybody is `ANONYMOUS`.
        check_interval_s: The file is looked at no more often than this.
        clock: Monotonic seconds.

    Raises:
        ConfigError: The file is missing or broken now.
    """

    def __init__(
        self, path: Path | None, *, check_interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._check_interval_s = check_interval_s
        self._clock = clock
        self._checked_at_s = clock()
        self._seen = _signature(path) if path else None
        self._records = _read(path) if path else ()
        self._num_tenants = _num_tenants(self._records)
        self._checking = threading.Lock()  # routes run in threads too

    @property
    def num_tenants(self) -> int:
        """Those with a key that is valid; one where there are no keys."""
        return self._num_tenants

    def authenticate(self, authorization: str | None) -> KeyRecord:
        """The key that an `Authorization` header carries.

        Raises:
            UnauthorizedError: The header is missing or malformed, or its key is unknown or revoked.
        """
        if self._path is None:
            return ANONYMOUS
        with self._checking:
            self._follow_changes(self._path)
        digest = _sha256(_bearer_token(authorization))
        # Every record is compared, in constant time, so that the time taken tells nothing of the keys.
        found = [record for record in self._records if hmac.compare_digest(record.sha256, digest)]
        if not found or found[0].is_revoked:
            raise UnauthorizedError("The API key is not valid. Ask the operator of this server for one.")
        return found[0]

    def find(self, key_id: str) -> KeyRecord | None:
        """The valid key with this id, for work that a request of it has left here; `ANONYMOUS` if there are no keys."""
        if self._path is None:
            return ANONYMOUS
        with self._checking:
            self._follow_changes(self._path)
        return next((record for record in self._records if record.id == key_id and not record.is_revoked), None)

    def _follow_changes(self, path: Path) -> None:
        now_s = self._clock()
        if now_s - self._checked_at_s < self._check_interval_s:
            return
        self._checked_at_s = now_s
        signature = _signature(path)
        if signature != self._seen:
            # Taken before the file is read: what changes meanwhile is seen the next time.
            self._seen = signature
            self._reload(path)

    def _reload(self, path: Path) -> None:
        try:
            self._records = _read(path)
            self._num_tenants = _num_tenants(self._records)
        except ConfigError as error:
            logger.error("The last valid keys stay in effect: %s", error)
        else:
            num_valid = sum(not record.is_revoked for record in self._records)
            logger.info("Reloaded the key file: %d valid keys of %d", num_valid, len(self._records))


def may_use(record: KeyRecord, name: str) -> bool:
    """Whether a key allows an adapter, with or without version or alias, or the base by its served name."""
    return any(fnmatchcase(name.partition("@")[0], glob) for glob in record.adapters)


def create_key(path: Path, grant: KeyGrant, *, now: datetime) -> CreatedKey:
    """Add a key to a file, which is made where there is none.

    Raises:
        ConfigError: The file is broken; it stays as it is.
        OSError: The file cannot be written.
    """
    token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
    with file_lock(_lock_file(path)):
        records = list_keys(path)
        record = KeyRecord(
            **grant.model_dump(),
            id=_new_id(records),
            sha256=_sha256(token),
            created_at=now.isoformat(timespec="seconds"),
        )
        _write(path, (*records, record))
    return CreatedKey(record, token)


def list_keys(path: Path) -> tuple[KeyRecord, ...]:
    """All keys of a file, oldest first, revoked ones too; none where there is no file.

    Raises:
        ConfigError: The file is broken.
    """
    return _read(path) if path.exists() else ()


def revoke_key(path: Path, key_id: str, *, now: datetime) -> KeyRecord:
    """Revoke a key for good. One that was revoked before keeps its date.

    Raises:
        ConfigError: There is no such key, or the file is broken.
        OSError: The file cannot be written.
    """
    if not path.exists():
        raise ConfigError(f"{path}: the key file does not exist, so there is no key to revoke.")
    with file_lock(_lock_file(path)):
        records = {record.id: record for record in _read(path)}
        if key_id not in records:
            raise ConfigError(f"{path}: no key has the id {key_id!r}. `lorikeet keys list` shows the ids.")
        if not records[key_id].is_revoked:
            revoked_at = now.isoformat(timespec="seconds")
            records[key_id] = records[key_id].model_copy(update={"revoked_at": revoked_at})
            _write(path, records.values())
    return records[key_id]


def _num_tenants(records: Iterable[KeyRecord]) -> int:
    return max(1, len({record.tenant for record in records if not record.is_revoked}))


def _bearer_token(authorization: str | None) -> str:
    if not authorization:
        raise UnauthorizedError("An API key is missing. Send it as `Authorization: Bearer lk-…`.")
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or _TOKEN.fullmatch(token) is None:
        raise UnauthorizedError(
            "The `Authorization` header does not contain an API key of this server. Send `Authorization: Bearer lk-…`."
        )
    return token


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _new_id(records: Iterable[KeyRecord]) -> str:
    taken = {record.id for record in records} | {ANONYMOUS.id}
    while (key_id := secrets.token_hex(4)) in taken:
        pass
    return key_id


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when the file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    # `ctime` too: a mended permission changes nothing else.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[KeyRecord, ...]:
    try:
        return KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}. Create the first key with `lorikeet keys create TENANT`."
        ) from error
    except ValidationError as error:
        # Without the values: somebody may have pasted a token.
        problems = "; ".join(
            f"`{'.'.join(map(str, problem['loc'])) or '(whole file)'}`: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False)
        )
        raise ConfigError(f"{path}: {problems}. Fix the file, or restore it from a backup.") from None


def _write(path: Path, records: Iterable[KeyRecord]) -> None:
    """Replace the file in one step: a reader sees the old keys or the new ones. The caller holds the lock."""
    content = KeyFile(keys=tuple(records)).model_dump_json(indent=2) + "\n"
    replace_file(path, content.encode(), mode=0o600)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
