"""One replica: the single server in a process of Ray Serve's."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS
from config.home import Home
from config.serve import ServeConfig
from serve.access.keys import KeyRecord
from serve.api.metrics_port import scrape
from serve.app import Parts, create_app
from serve.cluster.affinity import PRIMARY, ReplicaReport
from serve.cluster.autoscaling import LOAD, engine_load
from serve.cluster.forwarding import AnswerForwarder, Record, observe
from serve.cluster.key_limits import Refusal, SharedLimits
from serve.cluster.relay import Batch, answer_batches
from serve.cluster.settings import ClusterSettings, check_jobs, check_node, num_nodes
from serve.cluster.warming import warm
from serve.engine.arguments import set_environment
from serve.errors import EngineStartError
from serve.observe.logs import set_up_logging
from serve.secrets import open_keys, read_judge_key

logger = logging.getLogger(__name__)

_ASK_EVERY_S = 0.1
_DEMAND_TIMEOUT_S = 15.0


class Replica:
    """The server as a deployment. It counts as started when its engine is ready and its adapters are loaded."""

    async def __init__(self, settings: ClusterSettings, limits: "DeploymentHandle[Any]") -> None:  # type: ignore[misc]
        # Ray awaits it
        context = serve.get_replica_context()
        self._settings, self._rank = settings, context.rank.rank
        self._failure: Exception | None = None
        self._life = AsyncExitStack()
        check_node(settings.home, settings.home_id, settings.versions, str(context.rank.node_rank))
        check_jobs(is_enabled=settings.config.jobs.enabled, num_nodes=num_nodes())
        set_up_logging(settings.config.log_level, settings.config.log_format)
        set_environment(settings.config.log_level, settings.config.log_format)
        _use_own_cores(context.rank.local_rank, settings)
        self._siblings: Any = serve.get_deployment_handle(settings.deployment, context.app_name)
        self._config = _of_replica(settings.config, self._rank)
        self._parts = self._build(Home(settings.home), SharedLimits(_Remote(limits), context.replica_tag))
        self._app = create_app(self._parts, self._fail)
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        try:
            await self._wait_until_ready()
            await warm(self._demand_of_others, self._parts.residency.load, self._config.max_cpu_loras)
        except BaseException:
            await self._life.aclose()
            raise

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Batch]:
        """The application's answer to a request whose body is complete."""
        async for batch in answer_batches(self._app, scope, body):
            yield batch

    async def metrics(self) -> tuple[int, str]:
        """This replica's rank and scrape."""
        text = await asyncio.to_thread(scrape, self._parts.metrics)
        return self._rank, text.decode()

    async def rank(self) -> int:
        """Shows that it runs."""
        return self._rank

    async def demand(self) -> dict[str, int]:
        """Requests of late by version."""
        return self._parts.residency.demand()

    async def observe(self, records: list[Record]) -> bool:
        """Tell this replica's quality monitor what another one answered; False where it has none."""
        if self._parts.monitor is None:
            return False
        observe(self._parts.monitor, records)
        return True

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas follows; Ray asks."""
        demand, config = self._parts.completions.demand(), self._config
        num_tokens, kv_tokens = demand.num_tokens, self._parts.engine.kv_tokens
        return {LOAD: engine_load(demand.num_sequences, config.max_num_seqs, num_tokens, kv_tokens)}

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers know of this replica; Ray asks every second."""
        report = asdict(report_of(self._parts, self._config, self._rank))
        return report | {"models": sorted(report["models"])}

    def check_health(self) -> None:
        """Raises where there will be no engine any more. One that died is restarted by its own supervisor."""
        if self._failure is not None:
            raise self._failure

    async def __del__(self) -> None:
        # Ray awaits it, once no request is running or the time to drain is over
        await self._life.aclose()

    def _build(self, home: Home, limits: SharedLimits) -> Parts:
        from serve.build import build_server

        keys, judge_key = open_keys(self._config, home), read_judge_key(self._config)
        if self._is_watched():
            forwarder = AnswerForwarder(self._tell_monitor)
            parts = build_server(self._config, home, keys, judge_key, tenants=limits, watching=[forwarder])
            parts.engine.logprob_rate = self._settings.config.quality.logprob_rate
            return replace(parts, background=(*parts.background, limits.run, forwarder.run))
        parts = build_server(self._config, home, keys, judge_key, tenants=limits)
        return replace(parts, background=(*parts.background, limits.run))

    def _is_watched(self) -> bool:
        """Whether another replica has the monitor."""
        return self._settings.config.quality.enabled and not self._config.quality.enabled

    async def _tell_monitor(self, records: Sequence[Record]) -> bool:
        return bool(await self._siblings.options(session_id=PRIMARY).observe.remote(list(records)))

    async def _demand_of_others(self) -> list[dict[str, int]]:
        try:
            return list(await self._siblings.broadcast("demand").results_async(timeout_s=_DEMAND_TIMEOUT_S))
        except DeploymentUnavailableError:  # it is the first one
            return []

    async def _wait_until_ready(self) -> None:
        while not self._parts.engine.is_ready:
            self.check_health()
            await asyncio.sleep(_ASK_EVERY_S)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure if isinstance(failure, Exception) else EngineStartError(repr(failure))


class _Remote:
    """`RemoteKeyLimits` by Ray Serve's handle."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    def take(self, owner: str, lease_id: str, key: KeyRecord) -> Awaitable[Refusal | None]:
        return _awaited(self._handle.take.remote(owner, lease_id, key))

    def give(self, owner: str, lease_id: str) -> Awaitable[None]:
        return _awaited(self._handle.give.remote(owner, lease_id))

    def debit(self, key: KeyRecord, num_tokens: int) -> Awaitable[None]:
        return _awaited(self._handle.debit.remote(key, num_tokens))

    def seen(self, owner: str) -> Awaitable[None]:
        return _awaited(self._handle.seen.remote(owner))


async def _awaited(response: Any) -> Any:
    return await response


def report_of(parts: Parts, config: ServeConfig, rank: int) -> ReplicaReport:
    """What a replica holds, by the names that clients use."""
    residents = list(parts.residency.residents)
    models = {str(target) for target in residents}
    for target in residents:
        try:
            if parts.store.aliases(target.name).get(DEFAULT_ALIAS) == target.version:
                models.add(target.name)
        except AdapterError:  # damaged or removed meanwhile: its name is no reason to come here
            continue
    return ReplicaReport(
        rank, parts.engine.is_ready, frozenset(models), len(residents), config.max_loras, config.max_num_seqs
    )


def _of_replica(config: ServeConfig, rank: int) -> ServeConfig:
    """One replica runs the quality monitor: two would ask, grade and decide everything twice. None runs the worker."""
    changed: dict[str, Any] = {"jobs": config.jobs.model_copy(update={"worker": False})}
    if rank != 0:
        changed["quality"] = config.quality.model_copy(update={"enabled": False})
    return config.model_copy(update=changed)


def _use_own_cores(local_rank: int, settings: ClusterSettings) -> None:
    """Replicas on one node compute on different cores; threads and processes that start later inherit them."""
    if not hasattr(os, "sched_setaffinity") or settings.num_gpus:
        return
    cores = sorted(os.sched_getaffinity(0))
    first = settings.first_core + local_rank * settings.num_cpus
    own = cores[first : first + settings.num_cpus]
    if len(own) < settings.num_cpus or len(own) == len(cores):
        return
    os.sched_setaffinity(0, own)
    if len(own) == 1:  # vLLM would keep its only core free
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(own[0])
