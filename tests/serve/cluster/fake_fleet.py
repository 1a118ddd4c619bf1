"""`lorikeet serve --cluster ray` with an engine that only sleeps; started as a program of its own by test_fleet.py."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.home import Home
from config.local_ray import set_local_environment
from config.serve import ServeConfig
from serve.cluster.command import run_cluster


def main() -> None:
    """Arguments: the state folder, and a JSON object with `configs`, numbers of replicas, and perhaps `versions`."""
    home, asked = Home(Path(sys.argv[1])), json.loads(sys.argv[2])
    set_local_environment()  # before Ray is imported
    import serve.cluster.application as application

    replaced: Any = application
    replaced.Replica = fake_replica()
    if versions := asked.get("versions"):
        replaced.installed_versions = lambda: versions
    configs = [ServeConfig.model_validate(config) for config in asked["configs"]]
    run_cluster(configs, home, asked["replicas"], max_replicas=asked.get("max_replicas"))


def fake_replica() -> Any:
    from prometheus_client import CollectorRegistry

    from adapters.store.store import AdapterStore
    from serve.access.keys import KeyRing
    from serve.app import Parts
    from serve.build import Foundation, build_parts
    from serve.cluster.key_limits import SharedLimits
    from serve.cluster.replica import Replica
    from serve.jobs.services import open_services
    from serve.observe.metrics import ServeMetrics
    from serve.records import Observers
    from tests.fake_engine import FakeEngine

    class SlowEngine(FakeEngine):
        async def answer(self, *asked: Any) -> Any:
            await asyncio.sleep(0.5)
            return await super().answer(*asked)

    class FakeReplica(Replica):
        def _build(self, home: Home, limits: SharedLimits) -> Parts:
            metrics = ServeMetrics(CollectorRegistry(), self._config.served_model_name)
            folder, store = home.bases / self._config.base, AdapterStore(home.adapters)
            keys, observers = KeyRing(None), Observers()
            jobs = open_services(home.jobs, self._config.jobs)
            on = Foundation(
                self._config, store, folder, SlowEngine(), metrics, keys, observers, tenants=limits, jobs=jobs
            )
            parts = build_parts(on)
            return replace(parts, background=(*parts.background, limits.run))

    return FakeReplica


if __name__ == "__main__":
    main()
