"""A server that samples whole answers, has them judged and traced, and moves aliases by itself.

It has the session's store, so it runs only during tests/engine/judged: it would disturb others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import LiveServer, write_serve_config
from tests.otlp_collector import Taken, collector

QUALITY: dict[str, Any] = {
    "privacy": "full",
    "sample_rate": 1.0,
    "verdict": "act",
    "verdict_interval_s": 0.5,
    "held_out_interval_s": 0.2,
    "held_out_at_once": 8,
    "judge": {"sample_rate": 1.0, "requests_per_minute": 12},
}


@dataclass(frozen=True)
class JudgedServer(LiveServer):
    taken: Taken
    """What its collector got."""


@pytest.fixture(scope="package")
def judged(live_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgedServer]:
    folder = tmp_path_factory.mktemp("judged")
    with collector() as (endpoint, taken):
        config = write_serve_config(folder, otlp_endpoint=endpoint, quality=QUALITY)
        with running_server(config, live_home.root, folder / "serve.log") as server:
            yield JudgedServer(server.url, live_home, folder / "serve.log", server.pid, taken)
