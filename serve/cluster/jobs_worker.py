"""The job worker of an application: one for all bases and replicas, in a process that Ray restarts."""

import asyncio
from pathlib import Path

from config.home import Home
from config.serve import ServeConfig
from serve.background import Failures, keep_running
from serve.jobs.worker_process import WorkerProcess
from serve.observe.logs import set_up_logging


class JobsWorker:
    """`lorikeet worker` as a deployment: trains the fine-tuning jobs, however many replicas there are.

    Args:
        config: Its `jobs` section configures the worker, its `host` and `port` are those of the endpoint.
        home: The state folder's absolute path.
    """

    async def __init__(self, config: ServeConfig, home: Path) -> None:  # type: ignore[misc]  # Ray awaits it
        set_up_logging(config.log_level, config.log_format)
        worker = WorkerProcess(Home(home), config)
        self._running = asyncio.create_task(keep_running(worker.run, Failures()))

    async def __del__(self) -> None:
        # Ray awaits it; a job that is being trained saves a checkpoint
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


def reserved_cpus(config: ServeConfig) -> int:
    """Cores that Ray keeps for training: those of `jobs.cpus`. Without it, training takes what replicas leave idle."""
    return (config.jobs.cpus or 0) if config.jobs.enabled and config.jobs.worker else 0
