"""Which versions are resident in the engine: loaded on first use, checked before they answer, freed when idle.

Three tiers: an engine slot (`max_loras`), the engine's host memory (`max_cpu_loras`), the store. Loads and unloads
are ours alone, so that the engine never evicts what a request is using. `Engine.resident` is the only list of what is
in the engine; here is kept what else is known of those versions.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import NoReturn, Protocol

from adapters.errors import AdapterError
from adapters.reference import Target, parse_reference
from adapters.store.manifest import Manifest
from serve.background import is_told_to_end
from serve.engine.protocol import Engine
from serve.errors import AdapterRefusedError, BaseNotFiniteError, ConflictError, NotReadyError, ServeError
from serve.residency.checks import AnswerChecks, Checked, FileChecks
from serve.residency.eviction import Popularity
from serve.residency.lease import ResidencyLease, Resident
from serve.residency.parity import Parity
from serve.residency.quarantine import Quarantine
from serve.residency.refusals import Refusals

logger = logging.getLogger(__name__)

_EXPECTED = (AdapterError, ServeError, OSError, MemoryError)


class ResidencyObserver(Protocol):
    """Callbacks for loads."""

    def adapter_loaded(self, manifest: Manifest, load_s: float, parity_error_nats: float | None) -> None: ...

    def adapter_refused(self, target: Target, error: BaseException) -> None: ...

    def adapter_not_loaded(self, target: Target) -> None: ...

    def adapter_evicted(self, target: Target) -> None: ...

    def adapter_unloaded(self, target: Target) -> None: ...


class Residency:
    """The versions that the engine holds. One load at a time per version, however many requests wait for it."""

    def __init__(
        self,
        engine: Engine,
        file_checks: FileChecks,
        answer_checks: AnswerChecks,
        observer: ResidencyObserver,
        quarantine: Quarantine,
        *,
        max_loras: int,
        max_cpu_loras: int,
    ) -> None:
        self._engine = engine
        self._file_checks = file_checks
        self._answer_checks = answer_checks
        self._observer = observer
        self.quarantine = quarantine
        self._max_pinned = max_loras - 1
        self._max_resident = max_cpu_loras
        self._passed: OrderedDict[Target, Resident] = OrderedDict()  # since the engine's start
        self._refusals = Refusals()
        self._loading: dict[Target, asyncio.Task[None]] = {}
        self._unloading: dict[Target, asyncio.Task[None]] = {}
        self._wanted: Counter[Target] = Counter()  # requests that have asked for a version and do not hold it yet
        self._popularity = Popularity()
        self._changed = asyncio.Event()
        self._room = asyncio.Lock()
        self._claimed: set[Target] = set()  # places in host memory of versions that are being loaded and checked

    @property
    def residents(self) -> dict[Target, Resident]:
        """The versions in the engine that have passed their checks, least recently used first.

        Metrics ask from another thread than the event loop's, so they are copied first.
        """
        passed, in_engine = list(self._passed.items()), self._engine.resident
        return {target: resident for target, resident in passed if str(target) in in_engine}

    def is_resident(self, target: Target) -> bool:
        """Whether a lease is to be had without waiting."""
        return self._is_loaded(target) and target not in self._unloading

    async def lease(self, target: Target, *, is_for_client: bool = False) -> ResidencyLease:
        """Make a version resident and keep it so until the lease is released.

        Args:
            is_for_client: Whether it serves a client's request, which counts against eviction. Questions of the
                monitor, shadow copies, loads and prefetches do not count.

        Raises:
            AdapterRefusedError: It failed a check; versions are immutable, so this is remembered.
            AdapterUnavailableError: It cannot be loaded now, for a reason that says nothing about it.
            QuarantinedError: It computed what is not finite.
            NotReadyError: The engine is not running.
        """
        self.quarantine.check(target)
        is_cold = False
        if is_for_client:
            self._popularity.asked(target)
        with self.wanting(target):
            while True:
                if target in self._unloading:
                    await asyncio.shield(self._unloading[target])
                elif self._is_loaded(target):
                    self._passed.move_to_end(target)
                    return ResidencyLease(self._passed[target], self.wake, is_cold=is_cold)
                else:
                    is_cold = True
                    if target not in self._loading:
                        self._refusals.check(target)
                        self._start(self._loading, target, lambda: self._load(target))
                    # Shielded: a client that leaves must not cancel the load that others wait for.
                    await asyncio.shield(self._loading[target])

    async def load(self, target: Target) -> None:
        """Make a version resident, without a lease. Raises as `lease` does."""
        (await self.lease(target)).release()

    async def unload(self, target: Target) -> None:
        """Free a version's slot and memory once its last request is done; new requests wait, then load it again.

        Raises:
            ConflictError: It is pinned.
            NotReadyError: The engine is not running.
        """
        resident = self._passed.get(target)
        if resident is None:
            return
        if resident.is_pinned:
            raise ConflictError(f"{str(target)!r} is pinned. Unpin it first.")
        if target not in self._unloading:
            self._start(self._unloading, target, lambda: self._drain(target, resident))
        await asyncio.shield(self._unloading[target])

    async def pin(self, target: Target) -> None:
        """Load a version and keep it in its slot.

        Raises:
            ConflictError: As many are pinned as may be: one slot stays free for all other adapters.
        """
        pinned = [pinned for pinned, resident in self.residents.items() if resident.is_pinned]
        if target in pinned:
            return
        if len(pinned) >= self._max_pinned:
            names = ", ".join(map(str, pinned)) or "none"
            raise ConflictError(
                f"At most {self._max_pinned} adapters can be pinned (max_loras - 1); pinned now: {names}."
            )
        with await self.lease(target), _changed_pin(self._passed[target], is_pinned=True):
            await self._engine.pin(target)

    async def unpin(self, target: Target) -> None:
        resident = self.residents.get(target)
        if resident is not None and resident.is_pinned:
            with _changed_pin(resident, is_pinned=False):
                await self._engine.unpin(target)

    def demand(self) -> dict[str, int]:
        """Clients' requests of late, by version, resident or not."""
        return self._popularity.counts()

    def reset(self) -> tuple[Target, ...]:
        """Forget everything: the engine is gone. Returns what was resident, most recently used first."""
        targets = tuple(reversed(self._passed))
        for resident in self._passed.values():
            resident.hold.close()
        self._passed.clear()
        self.wake()
        return targets

    async def restore(self, targets: Iterable[Target]) -> tuple[Target, ...]:
        """Load versions again. Returns those that cannot be loaded now, which says nothing about them."""
        left: list[Target] = []
        for target in targets:
            try:
                await self.load(target)
            except AdapterRefusedError as error:
                logger.warning("Not reloaded: %s", error)
            except Exception as error:  # boundary: the next one may be loaded all the same
                logger.warning("Not reloaded: %s: %s", target, error)
                left.append(target)
        return tuple(left)

    def wake(self) -> None:
        """Wake the loads that wait for room: a lease was released or a version unloaded."""
        self._changed.set()

    @contextmanager
    def wanting(self, target: Target) -> Iterator[None]:
        """Protect a version from eviction between its load and its first request."""
        self._wanted[target] += 1
        try:
            yield
        finally:
            self._wanted[target] -= 1
            if not self._wanted[target]:
                del self._wanted[target]
                self.wake()

    @staticmethod
    def _start(tasks: dict[Target, asyncio.Task[None]], target: Target, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await work()
            finally:
                # Not in a callback, which comes a turn of the loop later: to await a task that is done is no turn,
                # and who then finds it here again would hold up the loop for ever.
                del tasks[target]

        tasks[target] = asyncio.create_task(run())
        # Its error counts as seen, also where every client that waited for it has left.
        tasks[target].add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, target: Target) -> None:
        start = time.perf_counter()
        with ExitStack() as hold:
            try:
                checked = await asyncio.to_thread(self._file_checks.check, target, hold)
                async with self._place(target):
                    loaded = await self._engine.load(target, checked.folder)
                    parity = await self._answer_checks.check(target, checked, loaded)
                    load_s = time.perf_counter() - start
                    self._keep(target, Resident(checked.manifest, checked.fingerprint, parity, load_s, hold.pop_all()))
            except BaseException as error:  # boundary: whatever it is, the next try must find nothing of this one
                await self._give_up(target, error)
        self._refusals.forget(target)
        self._observer.adapter_loaded(checked.manifest, load_s, parity.adapter_error_nats if parity else None)
        _log_load(target, checked, load_s, parity)

    def _is_loaded(self, target: Target) -> bool:
        return target in self._passed and str(target) in self._engine.resident

    def _keep(self, target: Target, resident: Resident) -> None:
        lost = self._passed.pop(target, None)
        if lost is not None:  # the engine no longer had it
            lost.hold.close()
        self._passed[target] = resident

    async def _give_up(self, target: Target, error: BaseException) -> NoReturn:
        """Free what the engine has of a version, and remember why it was not loaded."""
        with suppress(ServeError):
            await self._engine.unload(target)
        if is_told_to_end(error) or isinstance(error, (NotReadyError, BaseNotFiniteError)):
            raise error  # says nothing of the version
        refusal = self._refusals.add(target, error)
        if isinstance(refusal, AdapterRefusedError):
            self._observer.adapter_refused(target, error)
            logger.warning("Refused %s: %s", target, error)
        else:
            self._observer.adapter_not_loaded(target)
            # An error that nobody has thought of shows where it came from.
            logger.warning("Cannot load now: %s: %s", target, error, exc_info=not isinstance(error, _EXPECTED))
        raise refusal from error

    @asynccontextmanager
    async def _place(self, target: Target) -> AsyncIterator[None]:
        """A place in host memory for the length of a load; the resident that it becomes keeps it."""
        async with self._room:
            await self._make_room(target)
            self._claimed.add(target)
        try:
            yield
        finally:
            self._claimed.discard(target)
            self.wake()

    async def _make_room(self, target: Target) -> None:
        """Unload the least wanted idle version while host memory is full; waits where none is idle."""
        while len((self._engine.resident | set(map(str, self._claimed))) - {str(target)}) >= self._max_resident:
            idle = [
                (other, _size_bytes(resident.manifest))
                for other, resident in self.residents.items()
                if not (resident.in_flight or resident.is_pinned or other in self._wanted)
            ]
            if left := self._left_over():
                await self._engine.unload(left)
            elif idle:
                evicted = self._popularity.least_wanted(idle)
                await self.unload(evicted)
                self._observer.adapter_evicted(evicted)
            else:
                await self._wait_for_change()

    def _left_over(self) -> Target | None:
        """A version in the engine that was refused there, and whose removal failed; None where there is none."""
        for name in sorted(self._engine.resident):
            reference = parse_reference(name)
            assert reference.version is not None  # as `str` of a target has it
            target = Target(reference.name, reference.version)
            if not (target in self._passed or target in self._claimed or target in self._loading):
                return target
        return None

    async def _drain(self, target: Target, resident: Resident) -> None:
        while resident.in_flight:
            await self._wait_for_change()
        if self._passed.get(target) is not resident:
            return  # the engine was started anew meanwhile
        await self._engine.unload(target)
        self._passed.pop(target, None)
        resident.hold.close()
        self._observer.adapter_unloaded(target)
        logger.info("Unloaded %s", target)
        self.wake()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


@contextmanager
def _changed_pin(resident: Resident, *, is_pinned: bool) -> Iterator[None]:
    """Count a version as pinned, or not, from the start of the block; as before where that fails in the engine."""
    before, resident.is_pinned = resident.is_pinned, is_pinned
    try:
        yield
    except BaseException:
        resident.is_pinned = before
        raise


def _size_bytes(manifest: Manifest) -> int:
    return sum(file.size_bytes for file in manifest.files)


def _log_load(target: Target, checked: Checked, load_s: float, parity: Parity | None) -> None:
    logger.info(
        "Loaded %s in %.2f s: %s, parity error %s",
        target,
        load_s,
        checked.manifest.lora.described,
        f"{parity.adapter_error_nats:.4f} nats per token" if parity else "unknown (no fingerprint)",
    )
