"""Capacity and cliff as they run: against a server of known delays, with copies in a folder of their own."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from adapters.errors import AdapterNotFoundError
from adapters.store.store import AdapterStore
from config.home import Home
from config.loadtest import ClosedArrival, FixedLength, LoadtestConfig, MixConfig, PoissonArrival
from loadtest.bench.copies import copy_adapter
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.errors import RunFileError, SweepError
from loadtest.report.slo import parse_slo
from loadtest.search.cliff import find_cliff, recommend
from loadtest.search.report import CapacityReport, CliffReport, write_capacity, write_cliff
from loadtest.search.searches import CliffPlan, search_capacity, search_cliff
from loadtest.search.sweep import Setting, pair_settings, sweep, working_sets_for
from tests.loadtest.search.test_cliff import point
from tests.peft_folders import draft_for

SLO = parse_slo("ttft=5s")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with synthetic_server(Delays(ttft_s=0.01, itl_s=0.001)) as server:
        yield f"{server.url}/v1"


def load(url: str, num_models: int = 3) -> LoadtestConfig:
    return LoadtestConfig(
        url=url,
        mix=MixConfig(models=tuple(f"cliff-{n:03d}" for n in range(num_models))),
        arrival=PoissonArrival(rate=40),
        duration_s=0.2,
        max_tokens=FixedLength(value=3),
    )


@pytest.mark.slow
def test_a_search_writes_every_run_as_it_goes_and_its_reports_at_the_end(url: str, tmp_path: Path) -> None:
    said: list[str] = []
    runs_file = tmp_path / "runs.jsonl"
    report = search_capacity(load(url), SLO, (20, 40, 0.5, 1), runs_file, tmp_path, pause_s=0, say=said.append)
    assert (report.result.outcome, report.result.holds, report.result.fails) == ("out_of_runs", 20, None)
    assert said[0].startswith("20 requests/s hold: every objective is met (at most 0 more runs")
    assert len(runs_file.read_text().splitlines()) == 1
    json_file = write_capacity(report, tmp_path / "out")
    assert CapacityReport.model_validate_json(json_file.read_bytes()) == report
    assert "| 20.00 | holds |" in (tmp_path / "out" / "capacity.md").read_text()
    assert "<svg" in (tmp_path / "out" / "capacity.svg").read_text()


@pytest.mark.slow
def test_a_search_goes_on_with_the_runs_of_its_file(url: str, tmp_path: Path) -> None:
    runs_file = tmp_path / "runs.jsonl"
    search_capacity(load(url), SLO, (20, 40, 0.5, 1), runs_file, tmp_path, pause_s=0)
    report = search_capacity(load(url), SLO, (20, 40, 0.5, 2), runs_file, tmp_path, is_resumed=True, pause_s=0)
    assert (report.result.outcome, [run.rate for run in report.result.runs]) == ("above_high", [20, 40])


def test_runs_of_another_slo_are_refused(url: str, tmp_path: Path) -> None:
    runs_file = tmp_path / "runs.jsonl"
    search_capacity(load(url), SLO, (20, 40, 0.5, 1), runs_file, tmp_path, pause_s=0)
    with pytest.raises(RunFileError, match="belongs to SLO ttft=5s,p=99,errors=1%, not itl=1s"):
        search_capacity(
            load(url), parse_slo("itl=1s"), (20, 40, 0.5, 1), runs_file, tmp_path, is_resumed=True, pause_s=0
        )


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="Leave out --resume"):
        search_capacity(load("http://test"), SLO, (1, 2, 0.5, 1), tmp_path / "x", tmp_path, is_resumed=True)


def test_a_closed_loop_has_no_rate_to_search(tmp_path: Path) -> None:
    closed = load("http://test").model_copy(update={"arrival": ClosedArrival(kind="closed", concurrency=1)})
    with pytest.raises(SweepError, match=r"kind 'closed' have no single rate\. Use poisson"):
        search_capacity(closed, SLO, (1, 2, 0.5, 1), tmp_path / "x", tmp_path)


@pytest.mark.slow
def test_a_sweep_measures_every_working_set_with_its_first_models(url: str, tmp_path: Path) -> None:
    asked: list[Setting] = []

    def start(setting: Setting) -> nullcontext[str]:
        asked.append(setting)
        return nullcontext(url)

    settings = (Setting(1, 2), Setting(2, 3))
    points = sweep(load(url), settings, (3, 1), start, tmp_path)
    assert asked == list(settings)
    assert [(p.max_loras, p.max_cpu_loras, p.working_set) for p in points] == [
        (1, 2, 1),
        (1, 2, 3),
        (2, 3, 1),
        (2, 3, 3),
    ]
    assert {p.error_share for p in points} == {0.0}


def test_a_working_set_needs_as_many_models(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"between 1 and the number of models, 3; got \[4\]"):
        sweep(load("http://test"), (Setting(1, 2),), (4,), lambda _: nullcontext(""), tmp_path)


def test_a_running_server_has_one_setting(tmp_path: Path) -> None:
    settings = (Setting(1, 2), Setting(2, 2))
    plan = CliffPlan(
        load("http://test"), settings, (1,), 2.0, None, "medical", tmp_path, Home(tmp_path), is_running=True
    )
    with pytest.raises(SweepError, match="one setting; got 2"):
        search_cliff(plan)


def test_a_running_server_is_swept_and_reported(url: str, tmp_path: Path) -> None:
    plan = CliffPlan(
        load(url), (Setting(1, 2),), (1, 3), 9.0, None, "medical", tmp_path, Home(tmp_path), is_running=True
    )
    said: list[str] = []
    report = search_cliff(plan, say=said.append)
    assert report.recommendation.is_measured
    assert "3 adapters: TTFT p50" in said[1]
    json_file = write_cliff(report, tmp_path / "out")
    assert CliffReport.model_validate_json(json_file.read_bytes()) == report
    assert "Recommended: **max_loras 1, max_cpu_loras 2**" in (tmp_path / "out" / "cliff.md").read_text()


def test_the_cliff_is_marked_in_the_table_and_drawn(tmp_path: Path) -> None:
    cliffs = (find_cliff([point(1, 0.2), point(4, 0.2), point(5, 1.4, cold=0.5), point(8, None)]),)
    report = CliffReport(
        started_at="now", machine="two cores", workload={}, factor=2, cliffs=cliffs, recommendation=recommend(cliffs)
    )
    write_cliff(report, tmp_path)
    assert "| 2 | 4 | 5 | 50 | 1400 ms | 1400 ms | 50.0% | 0.0% | 100 | cliff |" in (tmp_path / "cliff.md").read_text()


def test_settings_are_paired_and_a_single_value_goes_with_all() -> None:
    assert pair_settings([2], [4, 8]) == (Setting(2, 4), Setting(2, 8))
    assert pair_settings([1, 2], [4, 8]) == (Setting(1, 4), Setting(2, 8))


@pytest.mark.parametrize(
    ("slots", "in_memory", "message"),
    [([1, 2], [4, 5, 6], "Got 2 of --max-loras and 3"), ([4], [2], "got max_loras 4, max_cpu_loras 2")],
)
def test_settings_that_do_not_fit_are_refused(slots: list[int], in_memory: list[int], message: str) -> None:
    with pytest.raises(SweepError, match=message):
        pair_settings(slots, in_memory)


def test_working_sets_lie_on_both_sides_of_every_limit() -> None:
    assert working_sets_for([Setting(2, 4)]) == (1, 2, 3, 4, 5, 8)


def test_copies_go_into_a_state_folder_of_their_own(store: AdapterStore, peft_folder: Path) -> None:
    home = Home(store.root.parent)
    manifest = store.publish(peft_folder, draft_for(peft_folder))
    store.promote("medical", manifest.version)
    (home.bases / "tiny").mkdir(parents=True)
    copies, names = copy_adapter(home, "medical", 2, home.root / "copies")
    copied = AdapterStore(copies.adapters)
    assert names == ("cliff-000", "cliff-001")
    assert [copied.manifest(copied.resolve(name)).lora for name in names] == [manifest.lora] * 2
    assert (copies.bases / "tiny").resolve() == (home.bases / "tiny").resolve()
    assert store.names() == ["medical"]


@pytest.mark.slow
def test_an_unknown_adapter_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="There is no 'medical'"):
        copy_adapter(Home(tmp_path), "medical", 2, tmp_path / "copies")
