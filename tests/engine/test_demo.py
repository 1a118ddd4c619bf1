"""`lorikeet demo` as a user runs it, with real training and the real engine, on easy domains; then `--quality`."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from demo.cli import DOMAINS
from demo.figures import DemoReport, QualityDemoReport
from tests.live_server import ANSWERS, BASE_NAME, lorikeet, write_domain, write_serve_config

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.exhaustive]

NUM_ASKED = 8


@dataclass(frozen=True)
class Shown:
    """A demo that has ended: its folder, its state folder, and what it printed."""

    folder: Path
    home: Home
    printed: str


@pytest.fixture(scope="module")
def demo(live_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """In a folder with its own configuration, as its page says, and with a base that is there already."""
    folder = tmp_path_factory.mktemp("demo")
    config, home = folder / "config", Home(folder / "var")
    home.root.mkdir()
    home.bases.symlink_to(live_home.bases)
    for name in DOMAINS:
        # As many held-out questions as the trials of `--quality` need.
        num_test = 120 if name == "medical" else NUM_ASKED
        write_domain(config / "domains", name, [ANSWERS["colours"]] * (num_test + 112), num_test)
    write_serve_config(config, cpu_compile=False)
    return Shown(folder, home, lorikeet(home, "demo", "--limit", str(NUM_ASKED), cwd=folder))


def test_the_demo_trains_and_swaps_in_three_adapters(demo: Shown) -> None:
    report = DemoReport.model_validate_json((demo.home.demo / "report.json").read_text())
    assert [(swap.served_by, swap.answer) for swap in report.swaps] == [
        (f"{name}@1", ANSWERS["colours"]) for name in DOMAINS
    ]
    assert [(domain.adapter, domain.n, domain.parity_ok) for domain in report.domains] == [(1.0, NUM_ASKED, True)] * 3
    assert all(domain.base < domain.adapter for domain in report.domains)
    assert all({"metric", "forgetting"} <= {one.kind for one in domain.evaluated} for domain in report.domains)
    assert {answer.served_by for answer in report.answers} == {f"{name}@1" for name in DOMAINS} | {BASE_NAME}
    assert all(one.is_ok for one in report.meanwhile)
    assert "First answer of an adapter after" in demo.printed
    assert (demo.home.demo / "report.html").exists()


def test_the_quality_demo_tells_a_bad_canary_from_a_good_one(demo: Shown) -> None:
    """Neither is a copy byte for byte: noise in every tensor, so that much of what both compute differs."""
    home = demo.home
    before = AdapterStore(home.adapters).history("medical")
    lorikeet(home, "demo", "--quality", cwd=demo.folder)
    report = QualityDemoReport.model_validate_json((home.demo / "quality" / "report.json").read_text())
    decisions = [(trial.canary, trial.decision) for trial in report.trials]
    assert decisions == [("medical@2", "rolled_back"), ("medical@3", "promoted")]
    assert all(trial.num_canary_requests > 0 for trial in report.trials)
    store = AdapterStore(home.demo / "quality" / "adapters")
    assert store.aliases("medical")["stable"] == 3
    assert len({store.manifest(store.resolve(f"medical@{version}")).digest for version in (1, 2, 3)}) == 3
    assert AdapterStore(home.adapters).history("medical") == before
