"""The judge, put together: which model is asked, and the loop that asks it."""

from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from adapters.store.reader import StoreReader
from config.serve import ServeConfig
from quality.samples.store import QualityStore
from serve.engine.protocol import Engine
from serve.monitor.judge.asking import EngineJudge, HttpJudge, http_judge_client
from serve.monitor.judge.comparing import Comparing
from serve.monitor.judge.judging import Judging
from serve.monitor.protocol import LeasedVersions, MonitorMetrics


def judge_answers(
    config: ServeConfig,
    engine: Engine,
    versions: LeasedVersions,
    adapters: StoreReader,
    store: QualityStore,
    metrics: MonitorMetrics,
    api_key: str | None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """What runs beside the server; nothing where no judge is named."""
    judge = config.quality.judge
    if judge is None:
        return []
    comparing = Comparing(engine, versions, adapters, store) if judge.pairwise else None
    if judge.url is None or judge.model is None:
        own = EngineJudge(engine, config.served_model_name)
        return [Judging(own, store, metrics, judge, adapters, comparing).run]
    url, model = judge.url, judge.model

    async def ask_elsewhere() -> None:
        async with http_judge_client(url, api_key, judge.timeout_s, transport) as client:
            await Judging(HttpJudge(client, model), store, metrics, judge, adapters, comparing).run()

    return [ask_elsewhere]
