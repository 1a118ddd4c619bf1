"""`lorikeet demo` as a user runs it, with real training and the real engine, on easy domains; and `--quality`."""

from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from demo.cli import DOMAINS
from demo.figures import DemoReport, QualityDemoReport
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
    assert all({"metric", "forgetting"} <= {one.kind for one in domain.evaluated} for domain in report.domains)
    assert {answer.served_by for answer in report.answers} == {f"{name}@1" for name in DOMAINS} | {BASE_NAME}
    assert all(one.is_ok for one in report.meanwhile)
    assert "First answer of an adapter after" in printed
    assert (home.demo / "report.html").exists()


def test_the_quality_demo_tells_a_bad_canary_from_a_good_one(live_home: Home, tmp_path: Path) -> None:
    """Neither is a copy byte for byte: noise in every tensor, so that much of what both compute differs."""
    config, home = tmp_path / "config", Home(tmp_path / "var")
    home.root.mkdir()
    home.bases.symlink_to(live_home.bases)
    domain = write_domain(config / "domains", "medical", [ANSWERS["colours"]] * 240, num_test=120)
    write_serve_config(config, cpu_compile=False)
    lorikeet(home, "train", str(domain), cwd=tmp_path)
    before = AdapterStore(home.adapters).history("medical")
    lorikeet(home, "demo", "--quality", cwd=tmp_path)
    report = QualityDemoReport.model_validate_json((home.demo / "quality" / "report.json").read_text())
    decisions = [(trial.canary, trial.decision) for trial in report.trials]
    assert decisions == [("medical@2", "rolled_back"), ("medical@3", "promoted")]
    assert all(trial.num_canary_requests > 0 for trial in report.trials)
    store = AdapterStore(home.demo / "quality" / "adapters")
    assert store.aliases("medical")["stable"] == 3
    assert len({store.manifest(store.resolve(f"medical@{version}")).digest for version in (1, 2, 3)}) == 3
    assert AdapterStore(home.adapters).history("medical") == before
