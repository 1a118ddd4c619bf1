"""Build the server from its configuration."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from adapters.bases import read_base
from adapters.jobs.figures import job_figures
from adapters.remote.remote import RemoteStore
from adapters.store.manifest import RequestDefaults
from adapters.store.store import AdapterStore
from config.home import Home
from config.serve import ServeConfig
from serve.access.admission import Admission
from serve.access.admission_queue import AdmissionQueue
from serve.access.cache_salt import CacheSalts
from serve.access.keys import KeyRing
from serve.access.ownership import ModelAccess
from serve.access.tenants import KeyLimiter, TenantLimits
from serve.api.bodies import BodyReader
from serve.api.completions import Completions, Gate
from serve.api.guard import WebRules
from serve.api.metrics_port import MetricsPort
from serve.api.model_cards import ModelCards
from serve.app import Parts
from serve.background import Failures, Loop
from serve.engine.protocol import Engine
from serve.jobs.batch_ask import LineAsker, is_model
from serve.jobs.batch_pace import Pacer
from serve.jobs.batch_run import BatchContext
from serve.jobs.batch_runner import BatchRunner
from serve.jobs.client_latency import ClientLatency
from serve.jobs.deletion import ModelDeletion
from serve.jobs.events import EventStreams
from serve.jobs.examples import ExampleFiles
from serve.jobs.forms import FormReader
from serve.jobs.parts import JobParts
from serve.jobs.revoked import RevokedKeys
from serve.jobs.services import JobServices, open_services
from serve.jobs.submission import JobSubmission
from serve.jobs.worker_process import WorkerProcess
from serve.limits.defaults import AnswerLengths, fill_defaults
from serve.monitor.assemble import MonitorStorage, assemble_monitor, open_storage
from serve.monitor.monitor import Monitor
from serve.monitor.protocol import MonitoredServer
from serve.observe.metrics import ServeMetrics
from serve.observe.router_metrics import AdapterPlaces, PlacedAdapter
from serve.records import Observers, TrafficObserver
from serve.residency.checks import AnswerChecks, FileChecks
from serve.residency.golden_replay import GoldenReplay
from serve.residency.loader import ResidencyLoader
from serve.residency.mirror import RemoteMirror
from serve.residency.parity import Tolerance, finite_logprobs
from serve.residency.quarantine import Quarantine
from serve.residency.residency import Residency
from serve.residency.template_time import find_time
from serve.residency.watch import StoreWatcher
from serve.routing.resolver import Resolver
from serve.routing.shadow import Shadow
from serve.supervisor import Supervisor

if TYPE_CHECKING:
    from serve.observe.tracing import Tracing

# The base itself may be further away then: 0.34 nats were seen on answers that it finds unlikely.
_ROUNDED_BASE_TOLERANCE = 4.0


@dataclass(frozen=True)
class Foundation:
    """What the server is built on; tests bring an engine of their own.

    Attributes:
        observers: Whom the engine tells of generations; those who listen are added once all parts are there.
        storage: Where the quality monitor keeps what it sees; without it there is none.
        is_base_rounded: Whether the engine rounds the base's activations to int8.
        tenants: Who counts what keys use, where it is not this server.
        jobs: The stores of files and jobs; without them there are no such routes.
        worker: Keeps the job worker running.
    """

    config: ServeConfig
    store: AdapterStore
    base_folder: Path
    engine: Engine
    metrics: ServeMetrics
    keys: KeyRing
    observers: Observers
    storage: MonitorStorage | None = None
    is_base_rounded: bool = False
    tenants: KeyLimiter | None = None
    jobs: JobServices | None = None
    worker: Loop | None = None


def build_parts(on: Foundation) -> Parts:
    """All parts of the application, and who is told of what.

    Raises:
        AdapterError: The base is not there, or the remote store's address is none.
    """
    config, store, engine, metrics = on.config, on.store, on.engine, on.metrics
    remote = RemoteStore(config.remote_store, store) if config.remote_store else None
    residency = _residency(on, remote)
    admission = _admission(on, residency)
    names = on.jobs.names if on.jobs else None
    resolver = Resolver(store, config.served_model_name, has_remote=remote is not None, tuned=names)
    access, tenants = ModelAccess(names.owner_of) if names else ModelAccess(), on.tenants or TenantLimits()
    shadow = Shadow(engine, residency, metrics, AnswerLengths.of(config))
    watcher = StoreWatcher(store, residency, metrics.adapter_retired, metrics.failures)
    monitor = _monitor(on, residency, admission)
    tracing = _tracing(config.otlp_endpoint, metrics.failures)
    _connect(on, residency, admission, monitor, tracing)
    completions = Completions(engine, resolver, residency, _gate(on, admission, tenants, access), shadow, on.observers)
    batches = _batch_runner(on, completions, admission, resolver, access, on.jobs) if on.jobs else None
    return Parts(
        engine=engine,
        store=store,
        models=ModelCards(
            resolver, config.served_model_name, read_base(on.base_folder).created_at, config.max_model_len
        ),
        residency=residency,
        completions=completions,
        keys=on.keys,
        shadow=shadow,
        metrics=metrics,
        supervisor=Supervisor(engine, residency, watcher, metrics),
        rules=WebRules.of(config, config.host),
        access=access,
        monitor=monitor,
        background=(
            watcher.run,
            *_loops(on, residency, remote, monitor, tracing),
            *([] if batches is None else [batches.run]),
        ),
        jobs=_job_parts(on, residency, resolver, access, tenants, batches),
        begin_drain=on.jobs.draining.set if on.jobs else lambda: None,
    )


def _job_parts(
    on: Foundation,
    residency: Residency,
    resolver: Resolver,
    access: ModelAccess,
    tenants: KeyLimiter,
    batches: BatchRunner | None,
) -> JobParts | None:
    if on.jobs is None or batches is None:
        return None
    config, examples = on.config, ExampleFiles(on.jobs.files)
    # Of several servers, the ingress holds a body in memory, so it cuts off what is larger.
    max_form_bytes = config.max_body_bytes if on.tenants else None
    return JobParts(
        services=on.jobs,
        examples=examples,
        forms=FormReader(config.body_timeout_s, on.jobs.run, max_form_bytes),
        submission=JobSubmission(
            on.jobs, examples, on.store, resolver, access, base=config.base, base_name=config.served_model_name
        ),
        streams=EventStreams(on.jobs),
        deletion=ModelDeletion(on.jobs, on.store, residency),
        limiter=tenants,
        base=config.base,
        wake_batches=batches.wake,
    )


def _batch_runner(
    on: Foundation,
    completions: Completions,
    admission: Admission,
    resolver: Resolver,
    access: ModelAccess,
    jobs: JobServices,
) -> BatchRunner:
    """The runner of batches, which sends lines through the same path as all other requests."""
    base_digest = read_base(on.base_folder).digest
    context = BatchContext(
        queue=jobs.batches,
        files=jobs.files,
        results=jobs.files.blobs.files.with_name("batches"),
        asker=LineAsker(completions),
        pacer=Pacer(admission.client_load),
        find_key=on.keys.find,
        base=on.config.base,
        is_model=lambda key, model: is_model(resolver, access, key, model, base_digest),
        max_body_bytes=on.config.max_body_bytes,
    )
    return BatchRunner(context, on.metrics.failures)


def _residency(on: Foundation, remote: RemoteStore | None) -> Residency:
    """Which versions the engine holds, and what they must pass."""
    config = on.config
    files = FileChecks(
        on.store,
        on.base_folder,
        max_lora_rank=config.max_lora_rank,
        limits=config.limits,
        who=f"lorikeet serve on port {config.port} (process {os.getpid()})",
        fetch=remote.fetch if remote else None,
    )
    return Residency(
        on.engine,
        files,
        AnswerChecks(on.engine, tolerance=_tolerance(on)),
        on.metrics,
        Quarantine(on.store, on.metrics),
        max_loras=config.max_loras,
        max_cpu_loras=config.max_cpu_loras,
    )


def _tolerance(on: Foundation) -> Tolerance:
    nats = on.config.parity_tolerance_nats
    return Tolerance(nats, nats * (_ROUNDED_BASE_TOLERANCE if on.is_base_rounded else 1.0))


def _admission(on: Foundation, residency: Residency) -> Admission:
    """The queue in front of the engine, and who is next."""
    config, loader = on.config, ResidencyLoader(residency)
    queue = AdmissionQueue(
        config.max_num_seqs,
        config.max_loras if config.slot_turn_s is None else config.max_cpu_loras,
        num_tenants=lambda: on.keys.num_tenants,
        is_resident=loader.is_resident,
        kv_tokens=lambda: on.engine.kv_tokens,
    )
    return Admission(queue, loader, config.max_waiting, config.max_wait_s)


def _gate(on: Foundation, admission: Admission, tenants: KeyLimiter, access: ModelAccess) -> Gate:
    """What a request passes before it is answered."""
    config = on.config
    bodies = BodyReader(config.max_body_bytes, config.body_timeout_s)
    salts = CacheSalts(is_shared=config.share_prefix_cache)
    lengths = AnswerLengths.of(config)
    return Gate(config.limits, lengths, bodies, config.request_timeout_s, tenants, admission, salts, access)


def _monitor(on: Foundation, residency: Residency, admission: Admission) -> Monitor | None:
    if on.storage is None:
        return None
    lengths = AnswerLengths.of(on.config)
    server = monitored_server(on.engine, residency, on.store, on.metrics, lengths, admission.is_busy)
    return assemble_monitor(on.config, on.storage, server)


def _tracing(endpoint: str | None, failures: Failures) -> "Tracing | None":
    if endpoint is None:
        return None
    from serve.observe.tracing import otlp_tracing  # OpenTelemetry comes with vLLM; few ask for it

    return otlp_tracing(endpoint, failures)


def _loops(
    on: Foundation, residency: Residency, remote: RemoteStore | None, monitor: Monitor | None, tracing: "Tracing | None"
) -> Iterator[Loop]:
    """What runs beside the server where the configuration asks for it."""
    config, metrics = on.config, on.metrics
    if monitor is not None:
        yield monitor.run
    if tracing is not None:
        yield tracing.run
    if remote is not None:
        yield RemoteMirror(remote, config.remote_sync_s, metrics.failures).run
    if on.jobs is not None:
        latency = ClientLatency(on.jobs)
        on.observers.of_generations.append(latency)
        yield on.jobs.sweep
        yield RevokedKeys(on.jobs, on.keys.find).run
        yield latency.run
    if on.worker is not None:
        yield on.worker
    if config.golden_replay:
        interval_s = config.golden_replay_interval_s
        yield GoldenReplay(on.engine, residency, metrics, interval_s=interval_s, tolerance=_tolerance(on)).run


def _connect(
    on: Foundation, residency: Residency, admission: Admission, monitor: Monitor | None, tracing: "Tracing | None"
) -> None:
    """Who is told of generations and requests, and what the metrics show of the parts."""
    metrics, observers = on.metrics, on.observers
    watching = [] if monitor is None else [monitor]
    observers.failures = metrics.failures
    observers.of_generations += [metrics, residency.quarantine, *watching]
    observers.of_requests += [metrics, *watching, *([] if tracing is None else [tracing])]
    residency.quarantine.export()
    metrics.follow_waiting(admission.waiting_by_reason)
    metrics.evaluated.listeners += [] if tracing is None else [tracing.evaluated]
    metrics.tenants.follow_running(admission.running_by_tenant)
    metrics.set_limits(on.config)
    if on.jobs is not None:
        metrics.jobs.follow(partial(job_figures, on.jobs.database))

    def placed() -> list[PlacedAdapter]:
        return [PlacedAdapter(target, own.is_pinned) for target, own in residency.residents.items()]

    places = AdapterPlaces(placed, admission.running_by_adapter, admission.waiting_by_adapter, on.store.aliases)
    metrics.follow_adapters(on.config.max_loras, places)


def monitored_server(
    engine: Engine,
    residency: Residency,
    store: AdapterStore,
    metrics: ServeMetrics,
    lengths: AnswerLengths,
    is_busy: Callable[[], bool],
) -> MonitoredServer:
    """The server as the quality monitor sees it.

    Args:
        is_busy: Whether clients' requests run.
    """

    def fill(body: dict[str, Any], defaults: RequestDefaults | None) -> dict[str, Any]:
        return fill_defaults(body, "chat/completions", defaults, lengths).body

    return MonitoredServer(
        engine=engine,
        versions=residency,
        adapters=store,
        metrics=metrics,
        is_busy=is_busy,
        fill_defaults=fill,
        finite_logprobs=partial(finite_logprobs, engine),
        find_time=partial(find_time, engine),
    )


def build_server(
    config: ServeConfig,
    home: Home,
    keys: KeyRing,
    judge_key: str | None = None,
    *,
    tenants: KeyLimiter | None = None,
    watching: Sequence[TrafficObserver] = (),
) -> Parts:
    """Build the server with the vLLM engine; vLLM is imported here.

    Args:
        judge_key: The API key of the judge's endpoint.
        tenants: Who counts what keys use; by default this server.
        watching: Who else is told of generations and requests.

    Raises:
        JobsError: The file of jobs cannot be used.
        AdapterError: The base is not there or cannot be served so, or the remote store's address is none.
        QualityStoreError: The file of samples cannot be used.
        ConfigError: A package is missing for what the configuration asks for, or `metrics_port` is taken.
    """
    from serve.engine.cpu.forks import start_fork_server

    start_fork_server()

    from serve.engine.cpu.int8 import rounds_activations
    from serve.engine.engine import VllmEngine, served_base

    base_folder = (home.bases / config.base).resolve()
    metrics = ServeMetrics(CollectorRegistry(), config.served_model_name)
    observers = Observers()
    served = served_base(config, base_folder, home.int8_bases)
    engine = VllmEngine(config, served, observers, home.staged)
    foundation = Foundation(
        config,
        AdapterStore(home.adapters.resolve()),
        base_folder,
        engine,
        metrics,
        keys,
        observers,
        storage=open_storage(config, home, judge_key),
        is_base_rounded=rounds_activations(served),
        tenants=tenants,
        jobs=open_services(home.jobs, config.jobs) if config.jobs.enabled else None,
        worker=WorkerProcess(home, config).run if config.jobs.enabled and config.jobs.worker else None,
    )
    parts = build_parts(foundation)
    observers.of_generations += watching
    observers.of_requests += watching
    if config.metrics_port is None:
        return parts
    return replace(parts, background=(*parts.background, MetricsPort(config, metrics).run))
