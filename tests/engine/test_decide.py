"""`lorikeet eval decide` against the real engine."""

import json

import pytest

from tests.live_server import LiveServer, lorikeet

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_every_way_is_answered_by_the_engine(live: LiveServer) -> None:
    file = live.home.root / "domains" / "colours.yaml"
    words = ("--url", f"{live.url}/v1", "--no-curve", "--limit", "6", "--examples", "2", "--concurrency", "4")
    shown = lorikeet(live.home, "eval", "decide", str(file), *words)
    assert "What would change it" in shown
    (path,) = (live.home.evaluations / "colours" / "decide").glob("*.json")
    ways = {way["name"]: way for way in json.loads(path.read_text())["ways"]}
    assert len(ways) == 10
    # The base may fill a string until its tokens are over; the adapter has learnt how long an answer is.
    constrained = [way for name, way in ways.items() if name.startswith("adapter") and name.endswith("constrained")]
    assert [way["valid_format"]["value"] for way in constrained] == [1, 1]
    assert ways["adapter"]["figure"]["value"] == 1
    nearest, alone = ways["adapter with 2 nearest examples"], ways["adapter"]
    assert nearest["prompt_tokens"] > alone["prompt_tokens"]
    assert 0 < alone["ttft_p50_s"] <= alone["e2e_p50_s"]
