"""Administration routes: adapter versions, aliases, and the quality monitor."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.release.traffic import CANARY_ALIAS
from adapters.store.store import AdapterStore
from serve.access.keys import KeyRecord
from serve.api.openapi import NAME, REFERENCE, errors, model_body
from serve.api.responses import body_reader
from serve.engine.protocol import Engine, EngineAdapters
from serve.errors import (
    AdapterRefusedError,
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    RateLimitedError,
    StoreFullError,
    UnauthorizedError,
    answer_of_store,
)
from serve.monitor.monitor import Monitor
from serve.monitor.trial.state import TrialState
from serve.residency.lease import Resident
from serve.residency.quarantine import Quarantine
from serve.residency.residency import Residency

_MAX_BODY_BYTES = 16_384
_BODY_ERRORS = (InvalidRequestError, BodyTimeoutError, BodyTooLargeError, RateLimitedError)
_MOVE_ERRORS = (*_BODY_ERRORS, ModelNotFoundError, ConflictError, StoreFullError)
_Name = Annotated[str, Path(json_schema_extra=NAME)]
_Reference = Annotated[str, Path(json_schema_extra=REFERENCE)]
_Action = Literal["load", "unload", "pin", "unpin", "unquarantine"]
_MonitorState = Literal["works", "paused", "off"]


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is the integer 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Version = Annotated[int, Field(ge=1, le=999_999_999), BeforeValidator(_whole)]


class AliasMove(BaseModel):
    """Changes to an adapter's aliases and traffic split; omitted fields keep their value."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stable: _Version | None = None
    canary: _Version | None = None
    canary_weight: float | None = Field(
        None, ge=0, le=1, description="Share of the requests to `name` that go to the canary."
    )
    shadow: bool | None = Field(
        None, description="Send the canary copies of requests only; its answers reach no client."
    )
    reason: str = Field("", max_length=500)


class AliasRollback(BaseModel):
    """The alias to roll back to its previous version."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alias: str = DEFAULT_ALIAS
    reason: str = Field("", max_length=500)


_Move = Annotated[AliasMove, Depends(body_reader(AliasMove, _MAX_BODY_BYTES))]
_Rollback = Annotated[AliasRollback, Depends(body_reader(AliasRollback, _MAX_BODY_BYTES))]


class AdapterRow(BaseModel):
    """One version. `tier`: `slot`, `host` or `store`, as the engine itself says; times in seconds."""

    adapter: str
    digest: str
    aliases: list[str]
    tier: str
    size_bytes: int
    is_pinned: bool
    in_flight: int
    last_used_at: str | None
    load_s: float | None
    parity_error_nats: float | None
    quarantine: str | None
    """Reason for the quarantine."""


class QualityState(BaseModel):
    """State of the quality monitor and of the canary trials."""

    monitor: _MonitorState
    trials: list[TrialState]


@dataclass(frozen=True)
class AdminParts:
    """The components behind the routes; `monitor` is None if the quality monitor is off."""

    store: AdapterStore
    residency: Residency
    engine: Engine
    monitor: Monitor | None


async def require_admin(request: Request) -> KeyRecord:  # async, or FastAPI would run it in a thread
    """The key of a request with admin rights.

    Raises:
        UnauthorizedError: No valid key.
        ForbiddenError: The key has no admin rights.
    """
    key: KeyRecord = request.app.state.authenticate(request)
    if not key.is_admin:
        raise ForbiddenError(
            "This key lacks admin rights; create an admin key with `lorikeet keys create NAME --admin`."
        )
    return key


async def _parts(request: Request) -> AdminParts:
    parts: AdminParts = request.app.state.admin
    return parts


_Parts = Annotated[AdminParts, Depends(_parts)]

admin_router = APIRouter(
    prefix="/admin", dependencies=[Depends(require_admin)], responses=errors(UnauthorizedError, ForbiddenError)
)
"""Routes under `/admin`. The application's `state.admin` has the `AdminParts`."""


@admin_router.get("/adapters", responses=errors(NotReadyError))
async def list_adapters(parts: _Parts) -> dict[str, list[AdapterRow]]:
    engine, residency = parts.engine, parts.residency
    held = await engine.adapters() if engine.is_ready else EngineAdapters((), frozenset())
    rows = await asyncio.to_thread(adapter_rows, parts.store, residency.residents, residency.quarantine, held)
    return {"adapters": rows}


@admin_router.post(
    "/adapters/{reference}/{action}",
    responses=errors(
        InvalidRequestError, ModelNotFoundError, ConflictError, AdapterRefusedError, NotReadyError, StoreFullError
    ),
)
async def act_on_adapter(reference: _Reference, action: _Action, parts: _Parts) -> dict[str, str]:
    store, residency = parts.store, parts.residency
    target = await asyncio.to_thread(_resolve, store, reference)
    if action == "unquarantine":
        with _as_http_errors():
            await residency.quarantine.lift(target)
        return {"adapter": str(target), "done": action}
    if not parts.engine.is_ready:
        raise NotReadyError("The server is starting. Poll GET /ready, or retry in a minute.")
    if action == "load":
        await residency.load(target)
    elif action == "unload":
        await residency.unload(target)
    elif action == "pin":
        await residency.pin(target)
        await asyncio.to_thread(store.pin, target)
    else:
        await asyncio.to_thread(store.unpin, target)
        await residency.unpin(target)
    return {"adapter": str(target), "done": action}


@admin_router.get("/aliases/{name}", responses=errors(ModelNotFoundError))
def list_aliases(name: _Name, parts: _Parts) -> dict[str, Any]:
    return _aliases(parts.store, name)


@admin_router.post("/aliases/{name}", responses=errors(*_MOVE_ERRORS), openapi_extra=model_body(AliasMove))
def move_aliases(name: _Name, wanted: _Move, parts: _Parts) -> dict[str, Any]:
    versions = {DEFAULT_ALIAS: wanted.stable, CANARY_ALIAS: wanted.canary}
    moves = {alias: version for alias, version in versions.items() if version is not None}
    with _as_http_errors():
        parts.store.set_aliases(
            name, moves, canary_weight=wanted.canary_weight, is_shadow=wanted.shadow, reason=wanted.reason
        )
    return _aliases(parts.store, name)


@admin_router.post("/aliases/{name}/rollback", responses=errors(*_MOVE_ERRORS), openapi_extra=model_body(AliasRollback))
def roll_back_alias(name: _Name, wanted: _Rollback, parts: _Parts) -> dict[str, Any]:
    with _as_http_errors():
        parts.store.rollback(name, alias=wanted.alias, reason=wanted.reason)
    return _aliases(parts.store, name)


@admin_router.get("/quality")
async def quality_state(parts: _Parts) -> QualityState:
    trials = list(parts.monitor.trials()) if parts.monitor else []
    return QualityState(monitor=_monitor_state(parts.monitor), trials=trials)


@admin_router.post("/quality/{action}", responses=errors(InvalidRequestError, ConflictError))
async def act_on_monitor(action: Literal["pause", "resume"], parts: _Parts) -> dict[str, _MonitorState]:
    monitor = parts.monitor
    if monitor is None:
        raise ConflictError(
            f"Cannot {action} the quality monitor: `quality.enabled` is false in this server's configuration."
        )
    await (monitor.pause() if action == "pause" else monitor.resume())
    return {"monitor": _monitor_state(monitor)}


def _monitor_state(monitor: Monitor | None) -> _MonitorState:
    return "off" if monitor is None else "paused" if monitor.is_paused else "works"


def adapter_rows(
    store: AdapterStore, residents: dict[Target, Resident], quarantine: Quarantine, held: EngineAdapters
) -> list[AdapterRow]:
    """Every version of the store, with the tier reported by the engine."""
    targets = [Target(name, version) for name in store.names() for version in store.versions(name)]
    return [_row(store, target, residents.get(target), held, quarantine.reason(target)) for target in targets]


def _row(
    store: AdapterStore, target: Target, resident: Resident | None, held: EngineAdapters, quarantine: str | None
) -> AdapterRow:
    manifest = resident.manifest if resident else store.manifest(target)
    tier = "slot" if str(target) in held.slots else "host" if str(target) in held.host else "store"
    return AdapterRow(
        adapter=str(target),
        digest=manifest.digest,
        aliases=sorted(a for a, version in store.aliases(target.name).items() if version == target.version),
        tier=tier,
        size_bytes=sum(file.size_bytes for file in manifest.files),
        is_pinned=target.version in store.pins(target.name),
        in_flight=resident.in_flight if resident else 0,
        last_used_at=_time_text(resident.last_used_at) if resident else None,
        load_s=round(resident.load_s, 3) if resident else None,
        parity_error_nats=resident.parity.adapter_error_nats if resident and resident.parity else None,
        quarantine=quarantine,
    )


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _aliases(store: AdapterStore, name: str) -> dict[str, Any]:
    with _as_http_errors():
        aliases, split = store.aliases(name), store.split(name)
        if not store.versions(name):
            raise AdapterNotFoundError(f"Adapter {name!r} does not exist. GET /admin/adapters lists all.")
    return {"name": name, "aliases": aliases, "canary_weight": split.canary_weight, "shadow": split.is_shadow}


@contextmanager
def _as_http_errors() -> Iterator[None]:
    """Map errors of the store to HTTP errors."""
    try:
        yield
    except AdapterError as error:
        raise answer_of_store(error) from None


def _resolve(store: AdapterStore, reference: str) -> Target:
    with _as_http_errors():
        return store.resolve(reference)
