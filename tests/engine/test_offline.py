"""A version answers the same with the engine and without it."""

import pytest

from tests.live_server import LiveServer, lorikeet

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_live_and_offline_answers_of_a_version_agree(live: LiveServer) -> None:
    lorikeet(live.home, "eval", "run", "colours@1", "--url", f"{live.url}/v1")
    lorikeet(live.home, "eval", "run", "colours@1", "--offline")
    models = ("--model", "colours@1", "--model", "colours@1 offline", "--metric", "exact_match")
    shown = " ".join(lorikeet(live.home, "eval", "compare", "colours", *models).split())
    assert "colours@1 offline" in shown
    assert "+0.000" in shown
    assert shown.count("1.000 (0.676 to 1.000), n 8") == 2
