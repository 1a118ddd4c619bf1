"""`lorikeet demo` as a command: which files it takes, and how it ends where a step fails or somebody interrupts it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from demo.cli import DOMAINS
from demo.commands import StepFailedError
from demo.run import Demo
from lorikeet import app


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> list[Demo]:
    """The demos that would have run; each fails in a step."""
    found: list[Demo] = []

    def run_demo(demo: Demo) -> None:
        found.append(demo)
        raise StepFailedError("`lorikeet train` failed: no space left")

    monkeypatch.setattr("demo.run.run_demo", run_demo)
    return found


def demo(home: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--home", str(home), *options])


def test_a_step_that_fails_is_one_line(demos: list[Demo], tmp_path: Path) -> None:
    result = demo(tmp_path)
    assert (result.exit_code, result.stderr) == (1, "error: `lorikeet train` failed: no space left\n")


def test_options_and_packaged_domains_reach_the_demo(demos: list[Demo], tmp_path: Path) -> None:
    result = demo(tmp_path, "--fresh", "--limit", "3")
    (run,) = demos
    assert (run.home.root, run.is_fresh, run.limit) == (tmp_path, True, 3)
    assert tuple(domain.name for domain in run.domains) == DOMAINS
    assert all(str(file) in result.stdout for file in (*run.domain_files, run.serve_file))


def test_a_folders_own_configuration_is_taken(
    demos: list[Demo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    own = tmp_path / "config" / "serve.yaml"
    own.write_text("base: mine\n")
    monkeypatch.chdir(tmp_path)
    demo(tmp_path / "var")
    assert demos[0].serve_file.resolve() == own


def test_a_domain_that_is_no_domain_is_refused_before_anything_runs(
    demos: list[Demo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config" / "domains").mkdir(parents=True)
    (tmp_path / "config" / "domains" / "finance.yaml").write_text("name: 7\n")
    monkeypatch.chdir(tmp_path)
    result = demo(tmp_path / "var")
    assert result.exit_code == 1
    assert "finance.yaml" in result.stderr
    assert (demos, (tmp_path / "var").exists()) == ([], False)


def test_an_interrupted_demo_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Demo) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("demo.run.run_demo", interrupt)
    result = demo(tmp_path)
    assert result.exit_code == 130
    assert "run the command again without --fresh to resume" in result.stdout


def test_the_quality_demo_needs_an_earlier_demo(tmp_path: Path) -> None:
    result = demo(tmp_path, "--quality")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("Run `lorikeet demo` first.\n")
    assert list(tmp_path.iterdir()) == []
