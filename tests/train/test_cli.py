import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
import typer
from typer.testing import CliRunner

from config.dataset import SPLITS, read_dataset, read_split, version_folder
from config.home import Home
from config.load import load_domain
from tests.tiny_llama import prepare_tiny_base, write_colour_data, write_tiny_llama
from tests.tracked_files import ROOT
from tests.train.data.report.built import domain_of, write_rows
from train.cli import base_app, train
from train.data.cli import data_app, init
from train.data.report.figures import DataReport

runner = CliRunner()
train_app = typer.Typer()
train_app.command()(train)
init_app = typer.Typer()
init_app.command()(init)

DOMAIN = """
name: colours
description: Names the colour.
base: tiny
data:
  {source: jsonl, path: colours.jsonl, num_train: 20, num_validation: 4, num_test: 8,
   cleaning: {near_duplicate_jaccard: 1.0}}
chat: {system: "Colour?"}
recipe: {max_length: 128}
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "var")


@pytest.fixture
def domain_file(tmp_path: Path) -> Path:
    write_colour_data(tmp_path / "colours.jsonl")
    path = tmp_path / "colours.yaml"
    path.write_text(DOMAIN)
    return path


@pytest.mark.slow
def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, train.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_base_prepare_list_and_show(home: Home, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    options = ["--home", str(home.root)]
    prepared = runner.invoke(base_app, ["prepare", str(folder), "--quantization", "none", *options])
    assert prepared.exit_code == 0, prepared.output
    assert "tiny" in runner.invoke(base_app, ["list", *options]).output
    assert '"quantization": "none"' in runner.invoke(base_app, ["show", "tiny", *options]).output


def test_data_build_prints_the_counts_and_the_hash(home: Home, domain_file: Path) -> None:
    result = runner.invoke(data_app, ["build", str(domain_file), "--home", str(home.root)])
    assert result.exit_code == 0, result.output
    assert "20 / 4 / 8" in result.output
    assert "dataset_sha256" in result.output


def test_a_data_set_is_listed_pushed_and_pulled(home: Home, domain_file: Path, tmp_path: Path) -> None:
    options = ["--home", str(home.root)]
    assert "No data set found" in runner.invoke(data_app, ["list", *options]).output
    runner.invoke(data_app, ["build", str(domain_file), *options])
    version = version_folder(home.datasets / "colours").name
    assert version in runner.invoke(data_app, ["list", *options]).output
    url, there = f"file://{tmp_path / 'remote'}", ["--home", str(tmp_path / "there")]
    assert f"pushed colours {version}" in runner.invoke(data_app, ["push", "colours", url, *options]).output
    assert f"colours {version} is here" in runner.invoke(data_app, ["pull", url, "colours", *there]).output
    assert version in runner.invoke(data_app, ["list", *there]).output


@pytest.mark.parametrize(
    "words", [["push", "../x", "file:///tmp"], ["pull", "nope://x", "colours"], ["push", "x", "."]]
)
def test_a_mistake_with_a_data_set_is_one_line(words: list[str], home: Home) -> None:
    result = runner.invoke(data_app, [*words, "--home", str(home.root)])
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1), result.output
    assert result.stderr.startswith("error: ")


@pytest.mark.slow
def test_data_show_renders_examples_in_the_chat_template(home: Home, domain_file: Path, tmp_path: Path) -> None:
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    result = runner.invoke(data_app, ["show", str(domain_file), "-n", "1", "--home", str(home.root)])
    assert result.exit_code == 0, result.output
    assert "<|im_start|>user" in result.output
    assert "0 of 20 examples shortened" in " ".join(result.output.split())


@pytest.fixture
def support(home: Home, tmp_path: Path) -> list[str]:
    """A domain's file and the home's option; its base is prepared."""
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    config = domain_of(write_rows(tmp_path))
    path = tmp_path / "support.yaml"
    path.write_text(config.model_dump_json())
    return [str(path), "--home", str(home.root)]


@pytest.mark.slow
def test_data_report_prints_findings_and_writes_a_page(home: Home, support: list[str]) -> None:
    result = runner.invoke(data_app, ["report", *support])
    assert result.exit_code == 0, result.output
    assert "[bold] <b>rows.jsonl line 4" in result.stdout
    assert "row, tokens" in result.stdout
    page = home.data_reports / "support.html"
    assert f"page: {page}" in result.stdout
    assert '<span class="learnt">' in page.read_text()


@pytest.mark.slow
def test_a_domain_is_found_by_its_name(
    home: Home, support: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config" / "domains").mkdir(parents=True)
    Path(support[0]).rename(tmp_path / "config" / "domains" / "support.yaml")
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(data_app, ["report", "support", *support[1:]])
    assert result.exit_code == 0, result.output
    assert (home.data_reports / "support.html").is_file()


@pytest.mark.slow
def test_data_report_prints_json_alone(support: list[str]) -> None:
    result = runner.invoke(data_app, ["report", *support, "--json"])
    report = DataReport.model_validate_json(result.stdout)
    assert {group.name for group in report.groups} >= {"exact duplicates", "personal data"}
    assert report.tokens is not None
    assert len(report.learnt) == 3


def test_data_report_needs_no_base(domain_file: Path, home: Home, tmp_path: Path) -> None:
    config = domain_of(write_rows(tmp_path))
    domain_file.write_text(config.model_dump_json())
    result = runner.invoke(data_app, ["report", str(domain_file), "--home", str(home.root)])
    assert result.exit_code == 0, result.output
    assert "not shown: " in result.stdout
    assert "lorikeet base prepare" in result.stdout


@pytest.mark.slow
def test_data_show_tells_of_one_line(support: list[str]) -> None:
    kept = runner.invoke(data_app, ["show", *support, "--line", "[bold] <b>rows.jsonl:9"])
    assert kept.exit_code == 0, kept.output
    assert "In town 8.<|im_end|>" in kept.stdout
    dropped = runner.invoke(data_app, ["show", *support, "--line", "[bold] <b>rows.jsonl:6"])
    assert dropped.exit_code == 0, dropped.output
    assert "dropped" in dropped.stdout
    assert "[bold] <b>rows.jsonl line 5" in dropped.stdout


@pytest.mark.slow
def test_data_show_of_a_row_that_is_not_there_is_one_line(support: list[str]) -> None:
    result = runner.invoke(data_app, ["show", *support, "--row", "99"])
    assert result.exit_code == 1
    assert result.stderr.endswith("error: --row is 99, but the training split has 24 rows.\n")


@pytest.mark.slow
def test_data_diff_compares_two_versions(support: list[str], home: Home) -> None:
    path, before = Path(support[0]), []
    for refusal in ("No.", "Not here [/b]."):
        config = load_domain(path)
        answer = config.answer.model_copy(update={"refusal": refusal})
        path.write_text(config.model_copy(update={"answer": answer}).model_dump_json())
        assert runner.invoke(data_app, ["build", *support]).exit_code == 0
        before.append(f"support@{read_dataset(home.datasets / 'support').version}")
    result = runner.invoke(data_app, ["diff", *before, *support[1:]])
    assert result.exit_code == 0, result.output
    assert "All rows are equal." in result.stdout
    assert '"Not here [/b]."' in result.stdout


@pytest.mark.parametrize("arguments", [["nowhere.yaml"], ["nowhere.yaml", "--resume"]])
def test_a_mistake_is_one_line_and_no_traceback(arguments: list[str], home: Home) -> None:
    result = runner.invoke(train_app, [*arguments, "--home", str(home.root)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nowhere.yaml: No such file")
    assert "Traceback" not in result.output


def test_a_missing_base_names_the_command_that_prepares_it(home: Home, domain_file: Path) -> None:
    result = runner.invoke(train_app, [str(domain_file), "--home", str(home.root)])
    assert result.exit_code == 1
    assert "lorikeet base prepare" in result.stderr


@pytest.mark.slow
def test_a_terminated_training_says_what_to_run(home: Home, domain_file: Path, tmp_path: Path) -> None:
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    words = [sys.executable, "-m", "lorikeet", "train", str(domain_file), "--home", str(home.root)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("colours: load training libraries: ")
        process.terminate()
        rest = process.stdout.read()
    assert process.returncode == 143
    command = f"lorikeet train {domain_file} --home {home.root}"
    assert f"no checkpoint was written yet: run `{command}` again" in rest


def test_an_interrupted_training_names_its_checkpoint_and_home(
    home: Home, domain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    checkpoint = home.runs / "colours" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    monkeypatch.setattr("train.cli.shown", interrupted)
    result = runner.invoke(train_app, [str(domain_file), "--home", str(home.root)])
    assert result.exit_code == 130
    assert f"resume with `lorikeet train {domain_file} --home {home.root} --resume`" in result.output


@contextmanager
def loopback_teacher() -> Iterator[str]:
    """URL of an endpoint on this machine that answers each request with four new rows."""
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            rows = [{"input": f"what colour has thing number {next(numbers)}", "output": "red"} for _ in range(4)]
            message = {"role": "assistant", "content": json.dumps({"examples": rows})}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "t", "choices": [choice]})
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_synthetic_rows_are_trained_on_and_never_held_out(home: Home, domain_file: Path, tmp_path: Path) -> None:
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    with loopback_teacher() as url:
        words = ["expand", str(domain_file), "--teacher", url, "--model", "t", "--num-rows", "8"]
        result = runner.invoke(data_app, [*words, "--home", str(home.root)])
    assert result.exit_code == 0, result.output
    made = home.synthetic / "colours" / "synthetic.jsonl"
    assert str(made) in result.stdout
    text = domain_file.read_text().replace("path: colours.jsonl, num_train: 20", f"path: [colours.jsonl, {made}]")
    domain_file.write_text(text)
    assert runner.invoke(data_app, ["build", str(domain_file), "--home", str(home.root)]).exit_code == 0
    rows = {split: read_split(home.datasets / "colours", split) for split in SPLITS}
    assert sum(row.is_synthetic for row in rows["train"]) == 8
    assert not any(row.is_synthetic for row in [*rows["validation"], *rows["test"]])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--teacher", "localhost:8000"], "must be an http"),
        (["--teacher", "http://127.0.0.1:9/v1", "--kinds", "poems"], "paraphrase, new, edge, refusal"),
    ],
)
def test_a_mistake_with_the_teacher_is_one_line(options: list[str], reason: str, domain_file: Path, home: Home) -> None:
    words = ["expand", str(domain_file), "--model", "t", *options, "--home", str(home.root)]
    result = runner.invoke(data_app, words)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1), result.output
    assert reason in result.stderr


@pytest.mark.slow
def test_init_writes_a_yaml_that_builds_without_an_edit(home: Home, tmp_path: Path) -> None:
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    rows = [f"question {number},answer {number % 3}" for number in range(60)]
    (tmp_path / "mail.csv").write_text("\n".join(["question,answer", *rows]))
    options = ["--base", "tiny", "--folder", str(tmp_path / "domains"), "--home", str(home.root)]
    result = runner.invoke(init_app, ["mail", str(tmp_path / "mail.csv"), *options])
    assert result.exit_code == 0, result.output
    path = tmp_path / "domains" / "mail.yaml"
    assert f"lorikeet train {path}" in " ".join(result.stdout.split())
    built = runner.invoke(data_app, ["build", str(path), "--home", str(home.root)])
    assert built.exit_code == 0, built.output
    again = runner.invoke(init_app, ["mail", str(tmp_path / "mail.csv"), *options])
    assert (again.exit_code, "--force" in again.stderr) == (1, True)


@pytest.mark.parametrize("name", ["../up", "Mail", "", "a b"])
def test_init_refuses_names_that_no_adapter_can_have(name: str, home: Home, tmp_path: Path) -> None:
    result = runner.invoke(init_app, [name, "x.csv", "--folder", str(tmp_path), "--home", str(home.root)])
    assert (result.exit_code, "cannot name a domain" in result.stderr) == (1, True), result.output
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    (tmp_path / "file").write_text("no folder")
    arguments = ["prepare", str(folder), "--quantization", "none", "--home", str(tmp_path / "file" / "var")]
    result = runner.invoke(base_app, arguments)
    assert result.exit_code == 1
    assert "Not a directory. Give another path" in " ".join(result.stderr.split())
