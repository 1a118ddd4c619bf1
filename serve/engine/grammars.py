"""Grammars are compiled before the engine sees them: in another process, whose time is limited, and once each.

vLLM (0.32) would compile them on this process's event loop to validate them, where nothing can end it.
"""

import asyncio
import hashlib
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from serve.errors import GrammarError, NotReadyError, RateLimitedError

logger = logging.getLogger(__name__)

_PROGRAM = Path(__file__).with_name("grammar_compiler.py")
_MAX_KEPT = 4096
_MAX_AT_ONCE = 4  # they give way to the engine
_MAX_AT_ONCE_OF_TENANT = 2
_MAX_WAITING = 16  # each may hold a place of the batch meanwhile
_MAX_WAITING_OF_TENANT = 8
_MAX_LINE_BYTES = 1 << 20

Grammar = tuple[str, str]
"""Kind (`json`, `regex`, `grammar`, `lark`, `structural_tag`) and text."""


class _CompileQueue:
    """One whose new grammars are being compiled: some at once, few more that wait."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.places = asyncio.Semaphore(_MAX_AT_ONCE_OF_TENANT)


class GrammarChecks:
    """Which grammars may reach the engine.

    Args:
        tokenizer: xgrammar's description of the engine's tokenizer, as JSON; asked when the compiler starts.
        cpu_s: Processor time that a grammar may take to compile.
    """

    def __init__(self, tokenizer: Callable[[], str], cpu_s: float, program: Path = _PROGRAM) -> None:
        self._tokenizer = tokenizer
        self._cpu_s = cpu_s
        self._program = program
        self._kept: OrderedDict[bytes, str | None] = OrderedDict()
        self._checking: dict[bytes, asyncio.Task[str | None]] = {}
        self._tenants: dict[str, _CompileQueue] = {}
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)
        self._ids = count(1)
        self._results: dict[int, asyncio.Future[str | None]] = {}
        self._compiler: asyncio.Task[Process] | None = None
        self._is_stopped = False
        self._reader: asyncio.Task[None] | None = None

    async def check(self, grammar: Grammar, tenant: str = "") -> None:
        """Do nothing where a grammar compiles in time; those seen lately are known.

        Args:
            tenant: Whose request it is; "" for the server's own.

        Raises:
            GrammarError: It does not, or its masks would hold up the engine.
            RateLimitedError: Too many are new at once.
            NotReadyError: The compiler ended.
        """
        key = hashlib.sha256("\0".join(grammar).encode(errors="surrogatepass")).digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            error = self._kept[key]
        else:
            # One task for all who ask for it; it goes on when they leave, for its result is kept.
            error = await asyncio.shield(self._checking.get(key) or self._begin(key, grammar, tenant))
        if error is not None:
            raise GrammarError(f"The grammar of this request is refused: {error}.")

    def start(self) -> None:
        """Start the compiler ahead of the first grammar."""
        if self._compiler is None or (self._compiler.done() and self._has_ended()):
            self._compiler = asyncio.create_task(self._start())
            self._compiler.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def started(self) -> Process:
        """The compiler, once it is ready.

        Raises:
            NotReadyError: It does not start.
        """
        if self._is_stopped:
            raise _no_compiler()
        self.start()
        assert self._compiler is not None
        return await asyncio.shield(self._compiler)

    async def stop(self) -> None:
        """End the compiler, for good."""
        self._is_stopped = True
        compiler, self._compiler = self._compiler, None
        if compiler is None:
            return
        try:
            process = await compiler
        except NotReadyError:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    def _begin(self, key: bytes, grammar: Grammar, tenant_id: str) -> asyncio.Task[str | None]:
        tenant = self._tenants.setdefault(tenant_id, _CompileQueue())
        if len(self._checking) >= _MAX_WAITING or tenant.num_waiting >= _MAX_WAITING_OF_TENANT:
            raise RateLimitedError(
                f"{len(self._checking)} new grammars are being compiled, {tenant.num_waiting} of them for this client. "
                "Send the request again.",
                1.0,
                "grammars",
            )
        tenant.num_waiting += 1
        task = self._checking[key] = asyncio.create_task(self._compile(key, grammar, tenant))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _compile(self, key: bytes, grammar: Grammar, tenant: "_CompileQueue") -> str | None:
        try:
            async with tenant.places, self._places:
                error = await self._ask(grammar)
        finally:
            del self._checking[key]
            tenant.num_waiting -= 1
            self._tenants = {name: each for name, each in self._tenants.items() if each.num_waiting}
        self._kept[key] = error
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return error

    async def _ask(self, grammar: Grammar) -> str | None:
        process = await self.started()
        number = next(self._ids)
        result: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._results[number] = result
        kind, spec = grammar
        assert process.stdin is not None
        try:
            _write(process, {"id": number, "kind": kind, "spec": spec, "cpu_s": self._cpu_s})
            await process.stdin.drain()
            return await result
        except OSError:
            raise _no_compiler() from None
        finally:
            self._results.pop(number, None)

    def _has_ended(self) -> bool:
        assert self._compiler is not None
        return self._compiler.exception() is not None or self._compiler.result().returncode is not None

    async def _start(self) -> Process:
        tokenizer = await asyncio.to_thread(self._tokenizer)
        # -P: this program's folder holds modules whose names are others', too.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(self._program), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_MAX_LINE_BYTES
        )
        assert process.stdout is not None
        _write(process, {"tokenizer": tokenizer})
        if not await process.stdout.readline():
            await process.wait()
            logger.error("The process that compiles grammars did not start (exit code %s).", process.returncode)
            raise _no_compiler()
        self._reader = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: Process) -> None:
        try:
            await self._read_results(process)
        except (ValueError, KeyError, TypeError) as error:  # what it says makes no sense: it starts again
            logger.error("The process that compiles grammars is ended: %r", error)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        for result in self._results.values():
            if not result.done():
                result.set_exception(_no_compiler())

    async def _read_results(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            message = json.loads(line)
            error = message["error"]
            if "is_late" in message:
                error = f"it takes more than {self._cpu_s:g} s of processor time to compile"
            result = self._results.get(message["id"])
            if result is not None and not result.done():
                result.set_result(error)


def _write(process: Process, message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")


def _no_compiler() -> NotReadyError:
    return NotReadyError("The process that compiles grammars ended; it starts again. Send the request again.")
