"""Figures of a version's manifest as the demo shows them."""

import io

import pytest
from rich.console import Console

from adapters.scores import Score
from adapters.store.evaluation_records import FigureKind, FigureRecord, Forgetting
from adapters.store.manifest import Manifest
from demo.evaluated import EvaluatedRow, figures_of, rows_of
from demo.report import print_report, render_html
from tests.demo.test_report import report
from tests.serve.observe.test_metrics import manifest


def score(value: float, half: float = 0.1, n: int = 200) -> Score:
    return Score(value=value, ci_low=value - half, ci_high=value + half, n=n)


def figure(
    part: str = "", base: float = 0.1, adapter: float = 0.8, kind: FigureKind = "metric", metric: str = "exact_match"
) -> FigureRecord:
    return FigureRecord(
        kind=kind, metric=metric, part=part, base=score(base), adapter=score(adapter), difference=score(adapter - base),
        higher_is_better=metric != "nats per token",
    )  # fmt: skip


FIGURES = (
    figure(),
    figure("scope: in"),
    figure("scope: out", 0.15, 0.2),
    figure("class: neoplasms"),
    figure(metric="valid_format", base=0.2, adapter=0.99),
    figure("scope: out", metric="valid_format"),
    figure("general English", 3.54, 3.86, "forgetting", "nats per token"),
    figure("arithmetic", 0.5, 0.1, "forgetting"),
    figure("typos", 0.1, 0.6, "robustness"),
    figure("train rows", 0.1, 0.9, "overfitting"),
)


def named(rows: list[EvaluatedRow]) -> list[tuple[str, str, str]]:
    return [(row.group, row.part, row.metric) for row in rows]


def test_figures_come_in_groups_and_slices_by_the_first_metric() -> None:
    assert named(rows_of(FIGURES, with_classes=False)) == [
        ("held-out questions", "all", "exact_match"),
        ("held-out questions", "scope: in", "exact_match"),
        ("held-out questions", "scope: out", "exact_match"),
        ("held-out questions", "all", "valid_format"),
        ("robustness", "typos", "exact_match"),
        ("forgetting", "general English", "nats per token"),
        ("forgetting", "arithmetic", "exact_match"),
    ]


def test_classes_are_shown_where_there_is_room() -> None:
    assert ("held-out questions", "class: neoplasms", "exact_match") in named(rows_of(FIGURES, with_classes=True))


def test_shares_are_per_cent_and_likelihoods_nats() -> None:
    rows = {row.part: row for row in rows_of(FIGURES, with_classes=False)}
    assert (rows["typos"].base, rows["typos"].adapter) == ("10% (0–20)", "60% (50–70)")
    assert rows["typos"].difference == "+50 (+40 to +60)"
    assert (rows["general English"].base, rows["general English"].adapter) == ("3.54", "3.86")
    assert rows["general English"].difference == "+0.32 (+0.22 to +0.42)"


@pytest.mark.parametrize(
    ("part", "change"), [("typos", "better"), ("arithmetic", "worse"), ("general English", "worse"), ("scope: out", "")]
)
def test_a_change_is_named_once_its_whole_interval_is_on_one_side(part: str, change: str) -> None:
    rows = {row.part: row for row in rows_of(FIGURES, with_classes=False)}
    assert rows[part].change == change


def with_figures(*figures: FigureRecord) -> Manifest:
    forgetting = Forgetting(text="an English text", num_tokens=90, base_nll=3.5, adapter_nll=3.75)
    return manifest(forgetting=forgetting).model_copy(update={"figures": figures})


def test_a_version_without_figures_of_forgetting_shows_the_one_text_that_was_measured() -> None:
    (row,) = rows_of(figures_of(with_figures()), with_classes=False)
    assert (row.group, row.part, row.base, row.adapter) == ("forgetting", "an English text", "3.50", "3.75")
    assert (row.difference, row.change) == ("+0.25", "")


def test_a_version_with_figures_of_forgetting_shows_those_alone() -> None:
    assert figures_of(with_figures(*FIGURES)) == FIGURES


def test_the_page_and_the_terminal_show_all_groups() -> None:
    shown = report()
    (domain,) = shown.domains
    shown = shown.model_copy(update={"domains": (domain.model_copy(update={"evaluated": FIGURES}),)})
    out = io.StringIO()
    print_report(shown, Console(file=out, width=200))
    page = render_html(shown)
    for text in (out.getvalue(), page):
        assert all(part in text for part in ("scope: out", "typos", "general English", "+50 (+40 to +60)"))
    assert "class: neoplasms" in page
    assert '<td class="whole worse">+0.32 (+0.22 to +0.42)</td>' in page


@pytest.mark.slow
def test_an_earlier_version_says_how_to_get_its_figures() -> None:
    assert "published without these figures: <code>lorikeet demo --fresh</code>" in render_html(report())
