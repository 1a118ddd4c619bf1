"""`lorikeet demo` as a user runs it, with real training and the real engine, on three easy domains."""

from pathlib import Path

import pytest

from config.home import Home
from demo.cli import DOMAINS
from demo.figures import DemoReport
from tests.live_server import ANSWERS, BASE_NAME, lorikeet, write_domain, write_serve_config

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_the_demo_trains_and_swaps_in_three_adapters(live_home: Home, tmp_path: Path) -> None:
    """In a folder with its own configuration, as its page says, and with a base that is there already."""
    config, home = tmp_path / "config", Home(tmp_path / "var")
    home.root.mkdir()
    home.bases.symlink_to(live_home.bases)
    for name in DOMAINS:
        write_domain(config / "domains", name, [ANSWERS["colours"]] * 120)
    write_serve_config(config, cpu_compile=False)
    printed = lorikeet(home, "demo", cwd=tmp_path)
    report = DemoReport.model_validate_json((home.demo / "report.json").read_text())
    assert [(swap.served_by, swap.answer) for swap in report.swaps] == [
        (f"{name}@1", ANSWERS["colours"]) for name in DOMAINS
    ]
    assert [(domain.adapter, domain.n, domain.parity_ok) for domain in report.domains] == [(1.0, 8, True)] * 3
    assert all(domain.base < domain.adapter for domain in report.domains)
    assert {answer.served_by for answer in report.answers} == {f"{name}@1" for name in DOMAINS} | {BASE_NAME}
    assert all(one.is_ok for one in report.meanwhile)
    assert "First answer of an adapter after" in printed
    assert (home.demo / "report.html").exists()
