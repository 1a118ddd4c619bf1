"""`lorikeet eval`: what it shows of an endpoint, and what it says where there is none."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.bench.synthetic import UNKNOWN_MODEL, Delays, SyntheticServer, synthetic_server
from lorikeet import app
from tests.datasets_on_disk import write_dataset


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.001, itl_s=0.001)) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "datasets" / "medical", num_test=4)
    return tmp_path


def evaluated(home: Path, url: str, *words: str, model: str = "medical") -> tuple[int, str]:
    arguments = ["eval", "run", model, "--url", f"{url}/v1", "--home", str(home), *words]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(("words", "num_asked"), [((), 4), (("--limit", "3"), 3), (("--limit", "9"), 4)])
def test_a_table_shows_the_score_and_how_many_were_asked(
    server: SyntheticServer, home: Path, words: tuple[str, ...], num_asked: int
) -> None:
    code, shown = evaluated(home, server.url, *words)
    assert code == 0, shown
    assert f"medical: {num_asked} held-out questions" in shown
    assert f"0.000 (0.000 to 0.{'490' if num_asked == 4 else '561'}), n {num_asked}" in shown


def test_a_report_and_a_page_are_written(server: SyntheticServer, home: Path) -> None:
    assert evaluated(home, server.url, "--metric", "json_fields", "--metric", "length")[0] == 0
    reports = home / "evaluations" / "medical" / "reports"
    (report,) = reports.glob("*.json")
    assert [metric["metric"] for metric in json.loads(report.read_text())["models"][0]["metrics"]] == [
        "json_fields",
        "length",
    ]
    assert "Evaluation of medical" in report.with_suffix(".html").read_text()
    shown = CliRunner().invoke(app, ["eval", "show", "medical", "--home", str(home)], env={"COLUMNS": "200"})
    assert "json_fields" in shown.output


def test_a_metric_with_settings_is_given_as_yaml(server: SyntheticServer, home: Path) -> None:
    words = "--metric", r"{name: regex, pattern: '\d+ \w+'}", "--metric", "{name: numeric, tolerance: 2}"
    code, shown = evaluated(home, server.url, *words)
    assert code == 0, shown
    (report,) = (home / "evaluations" / "medical" / "reports").glob("*.json")
    found = [metric["metric"] for metric in json.loads(report.read_text())["models"][0]["metrics"]]
    assert found == ["regex", "numeric"]


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("{name: regex, pattern: [}", "is not YAML"),
        ("{name: regex, pattern: a, flavour: sweet}", "flavour: Extra inputs are not permitted"),
        ("{name: regex}", "pattern: Field required"),
        ("{pattern: a}", "Unable to extract tag using discriminator 'name'"),
    ],
)
def test_a_metrics_wrong_settings_are_told_in_one_line(
    server: SyntheticServer, home: Path, metric: str, reason: str
) -> None:
    code, shown = evaluated(home, server.url, "--metric", metric)
    assert code == 1
    assert reason in shown
    assert not (home / "evaluations").exists()


def test_a_domain_without_report_says_how_to_make_one(home: Path) -> None:
    shown = CliRunner().invoke(app, ["eval", "show", "legal", "--home", str(home)])
    assert shown.exit_code == 1
    assert "lorikeet eval run legal" in shown.output


def test_an_unknown_metric_is_refused_before_anything_is_asked(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, "--metric", "perfection")
    assert code == 1
    assert "perfection" in shown
    assert not (home / "evaluations").exists()


def test_a_data_set_that_is_not_built_is_named(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, model="legal")
    assert code == 1
    assert "legal" in shown


def test_a_model_that_the_server_does_not_know_is_one_line(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, "--domain", "medical", model=UNKNOWN_MODEL)
    assert code == 1
    assert UNKNOWN_MODEL in shown


@pytest.mark.slow
def test_an_address_that_nobody_answers_is_one_line(home: Path) -> None:
    code, shown = evaluated(home, "http://127.0.0.1:9")
    assert code == 1
    assert "127.0.0.1:9" in shown


def test_a_data_set_of_preferences_has_no_questions(home: Path) -> None:
    manifest = home / "datasets" / "medical" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"type": "preference"}))
    code, shown = evaluated(home, "http://127.0.0.1:9")
    assert code == 1
    assert "must have questions with answers; its rows are of type 'preference'" in shown


@pytest.mark.slow
def test_perturbed_questions_are_asked_on_demand(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, "--robustness")
    assert code == 0, shown
    assert "exact_match of 4 perturbed questions" in shown
    assert "digits" in shown
    assert "out_of_scope: 4 not asked: no refusal" in shown
    shown_again = CliRunner().invoke(app, ["eval", "show", "medical", "--home", str(home)], env={"COLUMNS": "200"})
    assert "perturbed questions" in shown_again.output


@pytest.mark.slow
@pytest.mark.parametrize(("words", "is_asked"), [((), True), (("--no-robustness",), False)])
def test_the_domains_settings_decide_unless_told_otherwise(
    server: SyntheticServer, home: Path, words: tuple[str, ...], is_asked: bool
) -> None:
    manifest = home / "datasets" / "medical" / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["evaluation"]["robustness"] = {"perturbations": ["casing"], "num_questions": 2}
    manifest.write_text(json.dumps(fields))
    code, shown = evaluated(home, server.url, *words)
    assert code == 0, shown
    assert ("exact_match of 2 perturbed questions" in shown) == is_asked
