from pathlib import Path

from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.evaluation.page import render_page
from loadtest.evaluation.published import plots_of
from loadtest.evaluation.report import EvaluationReport, MetricReport, ModelReport, Value
from tests.peft_folders import draft_for, write_peft_folder

SCRIPT = "<svg><script>alert(1)</script></svg>"


def model(name: str) -> ModelReport:
    value = Value(value=0.5, ci_low=0.4, ci_high=0.6, n=4)
    metric = MetricReport(
        metric="exact_match",
        higher_is_better=True,
        whole=value,
        by_slice={},
        num_left_out=0,
        left_out=(),
        difference=None,
    )
    return ModelReport(
        model=name, served_by=name, digest="d", metrics=(metric,), prompt_tokens=1, answer_tokens=1, e2e_p50_s=1,
        wrong_alone=(), right_alone=(), confusion=None,
    )  # fmt: skip


def home_with_a_plot(root: Path) -> Home:
    home, folder = Home(root / "var"), write_peft_folder(root / "source")
    (folder / "evaluation.svg").write_text(SCRIPT)
    AdapterStore(home.adapters).publish(folder, draft_for(folder))
    return home


def test_plots_are_those_of_versions_in_the_store(tmp_path: Path) -> None:
    home = home_with_a_plot(tmp_path)
    assert list(plots_of([model("medical@1"), model("medical@2"), model("/models/base")], home)) == ["medical@1"]
    assert plots_of([model("medical@1")], Home(tmp_path / "nothing")) == {}


def test_the_page_shows_a_plot_as_an_image(tmp_path: Path) -> None:
    models = (model("medical@1"),)
    report = EvaluationReport(
        domain="medical", dataset="d", num_items=4, few_shot=False, started_at="2026-11-29", models=models
    )
    page = render_page(report, plots_of(models, home_with_a_plot(tmp_path)))
    assert 'src="data:image/svg+xml;base64,' in page
    assert "script" not in page
