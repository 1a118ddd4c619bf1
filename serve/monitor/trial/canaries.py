"""Build the held-out questions and the trial controller."""

import logging

from config.serve import ServeConfig
from quality.samples.store import QualityStore
from serve.monitor.monitor import Monitor
from serve.monitor.protocol import MonitoredServer
from serve.monitor.trial.controller import Controller
from serve.monitor.trial.heldout import HeldOutPace, held_out

logger = logging.getLogger(__name__)


def watch_canaries(
    config: ServeConfig,
    server: MonitoredServer,
    store: QualityStore,
    monitor: Monitor,
    user_key: bytes,
) -> None:
    """Add to the monitor what runs beside the server, and who is told of requests and generations.

    Args:
        user_key: What users' names are hashed with.
    """
    quality, has_history = config.quality, config.remote_store is None
    if quality.verdict == "act" and not has_history:
        logger.warning("quality.verdict is 'act', but the remote store owns the histories: verdicts are only reported.")
    controller = Controller(
        server.adapters,
        server.versions,
        server.metrics,
        store,
        interval_s=quality.verdict_interval_s,
        mode=quality.verdict,
        has_history=has_history,
        user_key=user_key,
    )
    pace = HeldOutPace(
        interval_s=quality.held_out_interval_s,
        again_s=quality.held_out_again_hours * 3600.0,
        patience_s=quality.held_out_patience_s,
        at_once=quality.held_out_at_once,
    )
    heldout = held_out(server, store, None if quality.verdict == "off" else controller, pace, config.max_model_len)
    monitor.loops.append(heldout.run)
    if quality.verdict != "off":
        monitor.observers.of_requests.append(controller)
        monitor.observers.of_generations.append(controller)
        monitor.loops.append(controller.run)
        monitor.trials = controller.trials
