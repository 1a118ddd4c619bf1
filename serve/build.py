"""The server, put together from its configuration."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from adapters.bases import read_base
from adapters.remote.remote import RemoteStore
from adapters.store.manifest import RequestDefaults
from adapters.store.store import AdapterStore
from config.home import Home
from config.schema import ServeConfig
from serve.access.admission import Admission
from serve.access.admission_queue import AdmissionQueue
from serve.access.cache_salt import CacheSalts
from serve.access.keys import KeyRing
from serve.access.tenants import TenantLimits
from serve.api.bodies import BodyReader
from serve.api.completions import Completions, Gate
from serve.api.guard import WebRules
from serve.api.metrics_port import MetricsPort
from serve.api.model_cards import ModelCards
from serve.app import Parts
from serve.background import Failures, Loop
from serve.engine.protocol import Engine
from serve.limits.defaults import AnswerLengths, fill_defaults
from serve.monitor.assemble import MonitorStorage, assemble_monitor, open_storage
from serve.monitor.protocol import MonitoredServer
from serve.observe.metrics import ServeMetrics
from serve.records import Observers
from serve.residency.checks import AnswerChecks, FileChecks
from serve.residency.isolation import IsolationProbe
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

# The base itself may be further away then: 0.34 nats were seen on answers that it finds unlikely.
_ROUNDED_BASE_TOLERANCE = 4.0


def build_parts(
    config: ServeConfig,
    store: AdapterStore,
    base_folder: Path,
    engine: Engine,
    metrics: ServeMetrics,
    keys: KeyRing,
    observers: Observers | None = None,
    keeping: MonitorStorage | None = None,
    *,
    is_base_rounded: bool = False,
) -> Parts:
    """Everything but the engine, which tests replace; it tells the observers of generations.

    Args:
        keeping: Where the quality monitor keeps what it sees; without it there is none.
        is_base_rounded: Whether the engine serves the base in int8.

    Raises:
        AdapterError: The base is not there, or the remote store's address is none.
    """
    observers = observers or Observers()
    observers.failures = metrics.failures
    observers.of_generations.append(metrics)
    observers.of_requests.append(metrics)
    remote = RemoteStore(config.remote_store, store) if config.remote_store else None
    who = f"lorikeet serve on port {config.port} (process {os.getpid()})"
    files = FileChecks(
        store,
        base_folder,
        max_lora_rank=config.max_lora_rank,
        limits=config.limits,
        who=who,
        fetch=remote.fetch if remote else None,
    )
    nats = config.parity_tolerance_nats
    tolerance = Tolerance(nats, nats * (_ROUNDED_BASE_TOLERANCE if is_base_rounded else 1.0))
    answers = AnswerChecks(engine, tolerance=tolerance)
    quarantine = Quarantine(store, metrics)
    quarantine.export()
    observers.of_generations.append(quarantine)
    residency = Residency(
        engine, files, answers, metrics, quarantine, max_loras=config.max_loras, max_cpu_loras=config.max_cpu_loras
    )
    watcher = StoreWatcher(store, residency, metrics.adapter_retired, metrics.failures)
    max_adapters = config.max_loras if config.slot_turn_s is None else config.max_cpu_loras
    loader = ResidencyLoader(residency)
    queue = AdmissionQueue(
        config.max_num_seqs,
        max_adapters,
        num_tenants=lambda: keys.num_tenants,
        is_resident=loader.is_resident,
        kv_tokens=lambda: engine.kv_tokens,
    )
    admission = Admission(queue, loader, config.max_waiting, config.max_wait_s)
    metrics.follow_waiting(admission.waiting_by_reason)
    metrics.tenants.follow_running(admission.running_by_tenant)
    metrics.set_limits(config)
    lengths = AnswerLengths.of(config)
    salts = CacheSalts(is_shared=config.share_prefix_cache)
    bodies = BodyReader(config.max_body_bytes, config.body_timeout_s)
    gate = Gate(config.limits, lengths, bodies, config.request_timeout_s, TenantLimits(), admission, salts)
    resolver = Resolver(store, config.served_model_name, has_remote=remote is not None)
    shadow = Shadow(engine, residency, metrics, lengths)
    background: list[Loop] = [watcher.run]
    monitor = None
    if keeping is not None:
        server = monitored_server(engine, residency, store, metrics, lengths, admission.is_busy)
        monitor = assemble_monitor(config, keeping, server)
        observers.of_generations.append(monitor)
        observers.of_requests.append(monitor)
        background.append(monitor.run)
    if config.otlp_endpoint is not None:
        background.append(_trace(config.otlp_endpoint, observers, metrics.failures))
    if remote is not None:
        background.append(RemoteMirror(remote, config.remote_sync_s, metrics.failures).run)
    if config.canary_probes:
        background.append(_isolation_probe(config, engine, residency, metrics, tolerance).run)
    return Parts(
        engine=engine,
        store=store,
        models=ModelCards(resolver, config.served_model_name, read_base(base_folder).created_at, config.max_model_len),
        residency=residency,
        completions=Completions(engine, resolver, residency, gate, shadow, observers),
        keys=keys,
        shadow=shadow,
        metrics=metrics,
        supervisor=Supervisor(engine, residency, watcher, metrics),
        rules=WebRules.of(config, config.host),
        monitor=monitor,
        background=tuple(background),
    )


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


def _trace(endpoint: str, observers: Observers, failures: Failures) -> Loop:
    from serve.observe.tracing import otlp_tracing  # OpenTelemetry comes with vLLM; few ask for it

    tracing = otlp_tracing(endpoint, failures)
    observers.of_requests.append(tracing)
    return tracing.run


def _isolation_probe(
    config: ServeConfig, engine: Engine, residency: Residency, metrics: ServeMetrics, tolerance: Tolerance
) -> IsolationProbe:
    return IsolationProbe(
        engine,
        residency,
        metrics,
        interval_s=config.canary_probe_interval_s,
        tolerance=tolerance,
    )


def build_server(config: ServeConfig, home: Home, keys: KeyRing, judge_key: str | None = None) -> Parts:
    """The real thing; vLLM is imported here.

    Args:
        judge_key: The API key of the judge's endpoint.

    Raises:
        AdapterError: The base is not there or cannot be served so, or the remote store's address is none.
        QualityStoreError: The file of samples cannot be used.
        ConfigError: A package is missing for what the configuration asks for, or `metrics_port` is taken.
    """
    from serve.engine.engine import VllmEngine, served_base

    base_folder = (home.bases / config.base).resolve()
    metrics = ServeMetrics(CollectorRegistry(), config.served_model_name)
    observers = Observers()
    served = served_base(config, base_folder, home.int8_bases)
    engine = VllmEngine(config, served, observers, home.staged)
    store, keeping = AdapterStore(home.adapters.resolve()), open_storage(config, home, judge_key)
    is_rounded = served != base_folder
    parts = build_parts(
        config, store, base_folder, engine, metrics, keys, observers, keeping, is_base_rounded=is_rounded
    )
    if config.metrics_port is None:
        return parts
    return replace(parts, background=(*parts.background, MetricsPort(config, metrics).run))
