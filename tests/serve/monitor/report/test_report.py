"""`lorikeet quality report`: what it says of whole, partial and no data, in the terminal, as JSON and as a page."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.errors import AdapterNotFoundError
from adapters.scores import Score, bounded_score
from adapters.store.evaluation_records import Evaluation, FigureRecord
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore
from lorikeet import app
from quality.held_out import GeneralText, HeldOutSet, write_held_out
from quality.samples.records import DriftCheck, GeneralScore, Grade, HeldOutScore, Label, TrialPair
from quality.samples.store import QualityStore
from quality.signals import signals_of
from serve.monitor.report.collect import collect
from serve.monitor.report.evaluation import evaluation_table
from serve.monitor.report.figures import QualityReport
from serve.monitor.report.html import render_html
from serve.monitor.report.steps import held_out_steps, signal_steps
from serve.monitor.report.words import kappa
from tests.narrowing import not_none
from tests.peft_folders import draft_for, write_peft_folder
from tests.samples import NOON_S, SAMPLE

NOON = datetime.fromtimestamp(NOON_S, UTC)

Report = Callable[..., Result]


@pytest.fixture
def adapters(home: Path) -> AdapterStore:
    return AdapterStore(home / "adapters", clock=lambda: NOON)


@pytest.fixture
def report(home: Path) -> Report:
    def run(*arguments: str) -> Result:
        wide = {"COLUMNS": "200", "NO_COLOR": "1"}
        return CliRunner().invoke(app, ["quality", "report", *arguments, "--home", str(home)], env=wide)

    return run


def publish(adapters: AdapterStore, name: str = "medical", evaluated: tuple[FigureRecord, ...] = ()) -> None:
    """A version with its accuracy and general text, as stable."""
    folder = write_peft_folder(adapters.root.parent / f"made-{name}")
    write_held_out(
        HeldOutSet(max_tokens=8, general=GeneralText(token_ids=(1, 2, 3), base_nll=3.0, adapter_nll=3.1)), folder
    )
    score = Score(value=0.57, ci_low=0.5, ci_high=0.64, n=200)
    evaluation = Evaluation(
        metric="exact_match", base=score, adapter=score, base_valid_format=score, valid_format=score
    )
    version = adapters.publish(folder, draft_for(folder, name, evaluation=evaluation, figures=evaluated)).version
    adapters.promote(name, version, reason="passed its <gates>")


def fill(quality: QualityStore) -> None:
    """Some of everything, of version 1."""
    ids = quality.add_samples([replace(SAMPLE, at_s=NOON_S + 60 * number) for number in range(30)])
    for number, sample_id in enumerate(ids[:20]):
        grade = (number % 5) / 4
        quality.add_grade(Grade(sample_id, "judge-70b", NOON_S, grade, "So."))
        quality.add_label(Label(sample_id, "ada", NOON_S, min(1.0, grade + 0.25 * (number == 0))))
    quality.add_held_out_scores([HeldOutScore(NOON_S + 90 * n, "medical", 1, n, float(n % 3 > 0)) for n in range(30)])
    quality.add_general_score(GeneralScore(NOON_S, "medical", 1, 3.12))
    quality.add_drift_check(DriftCheck(NOON_S, "medical", 1, 1, 100, False, "", {}))
    quality.add_drift_check(DriftCheck(NOON_S + 900, "medical", 1, 2, 100, True, "answers <are> longer", {}))


def figures(quality: QualityStore, adapters: AdapterStore, name: str | None = None) -> QualityReport:
    return collect(quality, adapters, name, NOON)


class Page(HTMLParser):
    """Every attribute of a page, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.open += [] if tag in ("meta", "br") else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_figures_of_a_version_are_all_there(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters)
    fill(quality)
    (adapter,) = figures(quality, adapters).adapters
    (version,) = adapter.versions
    assert (version.num_samples, version.num_with_text, version.num_labels) == (30, 30, 20)
    assert version.published is not None
    assert version.published.value == 0.57
    assert version.published_nll == 3.1
    assert version.held_out[-1].accuracy.n == 30
    assert version.held_out[-1].accuracy.value == pytest.approx(2 / 3)
    assert [step.is_drift for step in version.drift_steps] == [False, True]
    assert version.scores[0].score.value == pytest.approx(0.5)
    assert adapter.missing == ()


def test_a_judge_is_held_against_the_labels(quality: QualityStore, adapters: AdapterStore) -> None:
    fill(quality)
    (judge,) = figures(quality, adapters).adapters[0].judges
    assert (judge.judge, judge.num_grades, judge.agreement.n) == ("judge-70b", 20, 20)
    assert judge.agreement.kappa is not None
    assert judge.agreement.kappa > 0.95
    assert sum(map(sum, judge.counts)) == 20
    assert judge.counts[1][0] == 1  # people said 2, the judge 1
    assert re.fullmatch(r"0\.\d\d \(0\.\d\d–0\.\d\d\), quadratic weights", kappa(judge))


def test_a_judge_without_labels_is_not_known_to_be_good(quality: QualityStore, adapters: AdapterStore) -> None:
    quality.add_grade(Grade(quality.add_sample(SAMPLE), "judge-70b", NOON_S, 0.5))
    (adapter,) = figures(quality, adapters).adapters
    assert kappa(adapter.judges[0]) == "unknown: no graded sample has a label"
    assert "labels" in {missing.what for missing in adapter.missing}


def test_preferences_are_scores_but_nothing_that_labels_agree_with(
    quality: QualityStore, adapters: AdapterStore
) -> None:
    sample_id = quality.add_sample(SAMPLE)
    quality.add_grade(Grade(sample_id, "judge-70b against medical@1", NOON_S, 1.0))
    quality.add_label(Label(sample_id, "ada", NOON_S, 0.0))
    (adapter,) = figures(quality, adapters).adapters
    assert [one.judge for one in adapter.versions[0].scores] == ["judge-70b against medical@1"]
    assert adapter.judges == ()


def test_labels_of_other_answers_than_the_judges_are_missed(quality: QualityStore, adapters: AdapterStore) -> None:
    first, second = quality.add_samples([SAMPLE, SAMPLE])
    quality.add_grade(Grade(first, "judge-70b", NOON_S, 0.5))
    quality.add_label(Label(second, "ada", NOON_S, 0.5))
    (adapter,) = figures(quality, adapters).adapters
    assert "labels of graded answers" in {missing.what for missing in adapter.missing}


def test_decisions_come_from_the_history_with_their_reasons(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters)
    publish(adapters)
    adapters.rollback("medical", reason="error rate 0.12 is too high")
    (adapter,) = figures(quality, adapters).adapters
    told = [(one.kind, one.previous, one.version, one.reason) for one in adapter.decisions]
    assert told == [
        ("promoted", None, 1, "passed its <gates>"),
        ("promoted", 1, 2, "passed its <gates>"),
        ("rolled_back", 2, 1, "error rate 0.12 is too high"),
    ]


def test_an_adapter_of_which_nothing_is_kept_says_what_is_missing(
    quality: QualityStore, adapters: AdapterStore
) -> None:
    publish(adapters)
    (adapter,) = figures(quality, adapters).adapters
    missing = [one.what for one in adapter.missing]
    assert missing == ["samples of traffic", "held-out questions", "measurement of forgetting", "drift checks"]


def test_where_no_text_is_kept_the_report_says_how_to_keep_some(quality: QualityStore, adapters: AdapterStore) -> None:
    quality.add_sample(replace(SAMPLE, prompt=None, answer=None, privacy="features"))
    (adapter,) = figures(quality, adapters).adapters
    assert any("privacy: redacted" in one.how for one in adapter.missing)


def test_the_base_is_not_told_to_bring_what_only_versions_have(quality: QualityStore, adapters: AdapterStore) -> None:
    quality.add_sample(replace(SAMPLE, adapter="SmolLM2-135M", version=0))
    (adapter,) = figures(quality, adapters).adapters
    assert [one.what for one in adapter.missing] == ["grades", "labels"]


def test_an_unknown_adapter_is_an_error_that_names_the_known_ones(
    quality: QualityStore, adapters: AdapterStore
) -> None:
    fill(quality)
    with pytest.raises(AdapterNotFoundError, match="No data about 'legal'; known adapters: medical"):
        figures(quality, adapters, "legal")


def test_one_adapter_can_be_asked_for(quality: QualityStore, adapters: AdapterStore) -> None:
    fill(quality)
    publish(adapters, "legal")
    assert [adapter.name for adapter in figures(quality, adapters).adapters] == ["legal", "medical"]
    assert [adapter.name for adapter in figures(quality, adapters, "legal").adapters] == ["legal"]


def test_a_question_that_is_asked_again_counts_once_with_its_latest_score() -> None:
    scores = [HeldOutScore(NOON_S + at_s, "medical", 1, question, value)
              for at_s, question, value in ((0, 0, 0.0), (1, 1, 1.0), (600, 0, 1.0))]  # fmt: skip
    first, last = held_out_steps(scores)
    assert (first.accuracy.value, first.accuracy.n) == (0.5, 2)
    assert (last.accuracy.value, last.accuracy.n) == (1.0, 2)


@pytest.mark.parametrize("num_samples", [1, 2, 40, 41, 1000])
def test_a_long_time_is_shown_in_forty_steps_at_most_and_no_sample_is_lost(num_samples: int) -> None:
    samples = [replace(SAMPLE, at_s=NOON_S + 3600 * number) for number in range(num_samples)]
    steps = list(signal_steps(samples))
    assert len(steps) == min(40, num_samples)
    assert sum(step.n for step in steps) == num_samples


def test_samples_without_a_figure_leave_it_out() -> None:
    bare = replace(SAMPLE, ttft_s=None, signals=signals_of("I20", num_tokens=2, finish_reason="stop"))
    (step,) = signal_steps([bare])
    assert (step.ttft_s, step.mean_logprob, step.num_tokens) == (None, None, 2)


def test_the_interval_of_a_mean_holds_the_mean() -> None:
    score = bounded_score([0.25])
    assert (score.value, score.ci_low, score.n) == (0.25, 0.0, 1)
    assert score.ci_high > 0.7


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[QualityReport, str]:
    """The figures of a version with some of everything, and their page."""
    home = tmp_path_factory.mktemp("filled")
    adapters = AdapterStore(home / "adapters", clock=lambda: NOON)
    publish(adapters)
    with QualityStore(home / "quality.sqlite3") as quality:
        fill(quality)
        report = figures(quality, adapters)
    return report, render_html(report)


def test_the_page_is_whole_and_refers_to_nothing_outside(filled: tuple[QualityReport, str]) -> None:
    page = Page(filled[1])
    assert page.open == []
    outside = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    assert [value for value in outside if not value.startswith(("#", "data:"))] == []


def test_the_page_has_a_plot_of_each_kind_and_what_others_wrote_is_text(filled: tuple[QualityReport, str]) -> None:
    _, text = filled
    assert text.count("<svg") == 6
    assert "answers &lt;are&gt; longer" in text
    assert "passed its &lt;gates&gt;" in text


@pytest.mark.slow
def test_a_page_of_an_adapter_of_which_nothing_is_kept_is_a_page_too(
    quality: QualityStore, adapters: AdapterStore
) -> None:
    publish(adapters)
    assert Page(render_html(figures(quality, adapters))).open == []


@pytest.mark.slow
def test_a_page_of_the_base_alone_is_a_page_too(quality: QualityStore, adapters: AdapterStore) -> None:
    quality.add_sample(replace(SAMPLE, adapter="base", version=0, ttft_s=None, prompt=None, answer=None))
    assert Page(render_html(figures(quality, adapters))).open == []


def test_a_page_of_nothing_says_so(quality: QualityStore, adapters: AdapterStore) -> None:
    assert "No data yet" in render_html(figures(quality, adapters))


@pytest.mark.slow
def test_the_same_figures_give_the_same_page(filled: tuple[QualityReport, str]) -> None:
    report, page = filled
    assert render_html(report) == page


@pytest.mark.slow
def test_many_versions_are_six_lines_and_all_rows(quality: QualityStore, adapters: AdapterStore) -> None:
    for version in range(1, 12):
        quality.add_general_score(GeneralScore(NOON_S, "medical", version, 3.0))
    text = render_html(figures(quality, adapters))
    assert len(re.findall(r"<tr><td>\d+</td>", text)) == 11
    assert "<!-- medical@11 -->" in text
    assert "<!-- medical@5 -->" not in text


@pytest.mark.slow
def test_the_command_shows_and_writes_the_report(
    report: Report, quality: QualityStore, adapters: AdapterStore, tmp_path: Path
) -> None:
    publish(adapters)
    fill(quality)
    page, numbers = tmp_path / "q.html", tmp_path / "q.json"
    result = report("medical", "--html", str(page), "--json", str(numbers))
    assert result.exit_code == 0
    told = (
        "66.7% (49–81)",
        "57.0% (50–64)",
        "judge-70b",
        "Drift of version 1, check 2",
        "answers <are> longer",
        "promoted",
    )
    assert [text for text in told if text not in result.stdout] == []
    assert json.loads(numbers.read_text())["adapters"][0]["name"] == "medical"
    assert QualityReport.model_validate_json(numbers.read_text()).adapters[0].versions[0].num_samples == 30
    assert page.read_text().startswith("<!doctype html>")


def test_a_report_without_anything_says_so(report: Report, quality: QualityStore) -> None:
    result = report()
    assert result.exit_code == 0
    assert "No data yet" in result.stdout


def test_a_report_without_a_store_says_who_makes_it(report: Report, home: Path) -> None:
    result = report()
    assert result.exit_code == 1
    assert "`lorikeet serve` creates it" in result.stderr
    assert not home.exists()


def on_trial(adapters: AdapterStore, quality: QualityStore) -> None:
    """`medical@2` beside stable, with three users of each that a server wrote down."""
    publish(adapters)
    folder = write_peft_folder(adapters.root.parent / "made-canary")
    adapters.publish(folder, draft_for(folder, "medical"))
    adapters.set_aliases("medical", {"canary": 2}, canary_weight=0.3)
    trial = adapters.trial("medical")
    assert trial is not None
    about = NOON_S, "medical", trial.stable, trial.canary, trial.began_at
    quality.add_trial_pairs(
        [TrialPair(*about, "error", 0.0, 0.0, None, f"s{number}", f"c{number}", 20) for number in range(3)]
    )


@pytest.mark.slow
def test_a_trial_under_way_is_told_with_its_users_and_why_it_holds(
    quality: QualityStore, adapters: AdapterStore
) -> None:
    on_trial(adapters, quality)
    trial = figures(quality, adapters).adapters[0].trial
    assert trial is not None
    assert (trial.canary, trial.stable, trial.action) == ("medical@2", "medical@1", "hold")
    errors = trial.comparisons[1]
    assert (errors.num_pairs, errors.stable_users, errors.canary_users, errors.least_users) == (3, 3, 3, 242)
    assert "send each person's id as `user`" in trial.reason


def test_terminal_and_page_show_a_trials_users_and_reason(
    quality: QualityStore, adapters: AdapterStore, report: Report, tmp_path: Path
) -> None:
    on_trial(adapters, quality)
    result = report("medical", "--html", str(tmp_path / "q.html"))
    page = (tmp_path / "q.html").read_text()
    Page(page)
    for text in (result.output, page):
        assert "medical@2 against medical@1" in text
        assert "3 and 3 of 242" in text
        assert "too few users" in text


def test_without_a_canary_there_is_no_trial(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters)
    fill(quality)
    assert figures(quality, adapters).adapters[0].trial is None


def figure(part: str, value: float) -> FigureRecord:
    score = Score(value=value, ci_low=value - 0.1, ci_high=value + 0.1, n=40)
    return FigureRecord(kind="metric", metric="exact_match", part=part, adapter=score)


@pytest.mark.slow
def test_figures_of_versions_stand_side_by_side(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters, evaluated=(figure("", 0.5), figure("scope: <out>", 0.25)))
    adapters.publish(adapters.root.parent / "made-medical", draft_of(adapters, figure("", 0.75)))
    adapters.promote("medical", 2, alias="canary")
    (adapter,) = figures(quality, adapters).adapters
    table = not_none(evaluation_table(adapter))
    assert table.versions == (1, 2)
    assert table.rows == (
        ("exact_match", ("0.500 (0.40–0.60)", "0.750 (0.65–0.85)")),
        ("exact_match[scope: <out>]", ("0.250 (0.15–0.35)", "–")),
    )
    page = render_html(figures(quality, adapters))
    assert "exact_match[scope: &lt;out&gt;]" in page
    assert Page(page).open == []


def draft_of(adapters: AdapterStore, *evaluated: FigureRecord) -> ManifestDraft:
    return draft_for(adapters.root.parent / "made-medical", "medical", figures=evaluated)


def test_versions_without_figures_have_no_table(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters)
    (adapter,) = figures(quality, adapters).adapters
    assert evaluation_table(adapter) is None


def test_a_table_of_many_slices_says_how_many_it_leaves_out(quality: QualityStore, adapters: AdapterStore) -> None:
    publish(adapters, evaluated=tuple(figure(f"class: {n}", 0.5) for n in range(70)))
    (adapter,) = figures(quality, adapters).adapters
    assert not_none(evaluation_table(adapter)).num_left_out == 10
    assert "10 more figures are in the manifests" in render_html(figures(quality, adapters))
