"""The job worker as a child process: started and stopped with the server, and restarted if it ends."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from adapters.store.durable import replace_file
from config.children import bound
from config.home import Home
from config.serve import ServeConfig

logger = logging.getLogger(__name__)

_CONFIG_FILE = "serve.yaml"
"""JSON, which is YAML too."""

_END_S = 20.0
"""Time to reach a checkpoint, or release the job, before the worker is killed."""


class WorkerEndedError(RuntimeError):
    """The worker has ended unexpectedly."""


class WorkerProcess:
    """`lorikeet worker`, which gets SIGTERM when this process ends for any reason.

    Args:
        config: The server's configuration with command-line overrides; the worker reads it from a file.
        command: Replaces the worker's command, for tests.
        end_s: Maximum wait for its end, seconds.
    """

    def __init__(self, home: Home, config: ServeConfig, *, command: Sequence[str] = (), end_s: float = _END_S) -> None:
        self._config_file = home.jobs / _CONFIG_FILE
        self._config = config
        words = [sys.executable, "-m", "lorikeet", "worker", "--config", str(self._config_file)]
        self._command = list(command) or [*words, "--home", str(home.root)]
        self._end_s = end_s

    async def run(self) -> None:
        """Run it until cancelled. `keep_running` restarts it, with growing pauses.

        Raises:
            WorkerEndedError: It has ended.
        """
        self._config_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._config_file, self._config.model_dump_json(indent=2).encode(), mode=0o600)
        process = await asyncio.create_subprocess_exec(*bound(self._command), stdin=asyncio.subprocess.DEVNULL)
        logger.info("Started the job worker (process %d)", process.pid)
        try:
            code = await process.wait()
        finally:
            await self._end(process)
        raise WorkerEndedError(f"The job worker ended with exit code {code}. See its log lines for the reason.")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._end_s)
        except TimeoutError:
            logger.warning("The job worker did not end within %g s and is killed", self._end_s)
            process.kill()
            await process.wait()
