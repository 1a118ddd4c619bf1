"""Several domains at a time: their tasks, what each gets, and what is seen of them. Ray itself is not started."""

import inspect
import sys

import pytest
import typer
from typer.testing import CliRunner

from config.home import Home
from train.cli import train
from train.cluster import DomainTask, Resources, _Followed, domain_tasks, run_task, share_of
from train.errors import TrainError

DOMAIN = """
name: {name}
description: Names the colour.
base: tiny
data: {{source: jsonl, path: colours.jsonl, num_train: 20, num_validation: 4, num_test: 8}}
chat: {{system: "Colour?"}}
"""


def domain(folder, name):
    file = folder / f"{name}.yaml"
    file.write_text(DOMAIN.format(name=name))
    return file


def test_each_domain_is_a_training_of_its_own(tmp_path):
    files = [domain(tmp_path, "colours"), domain(tmp_path, "shapes")]
    colours, shapes = domain_tasks(files, Home(tmp_path / "var"), ["--force"])
    assert (colours.name, shapes.name) == ("colours", "shapes")
    assert shapes.words == ("train", str(files[1]), "--home", str(tmp_path / "var"), "--force")


def test_a_domain_that_is_given_twice_is_refused(tmp_path):
    file = domain(tmp_path, "colours")
    with pytest.raises(TrainError, match="'colours' is given twice"):
        domain_tasks([file, file], Home(tmp_path), [])


@pytest.mark.parametrize(
    ("cluster", "largest_node", "num_tasks", "share"),
    [
        ({"CPU": 8.0}, 8, 3, Resources(2, 0)),
        ({"CPU": 2.0}, 2, 5, Resources(1, 0)),
        ({"CPU": 64.0, "GPU": 2.0}, 16, 3, Resources(16, 1)),
    ],
)
def test_tasks_share_what_the_cluster_has(cluster, largest_node, num_tasks, share):
    assert share_of(cluster, largest_node, num_tasks) == share


@pytest.mark.slow
def test_a_task_hands_on_what_the_program_prints_and_its_exit_code():
    *lines, code = run_task(DomainTask("d", ("no-such-command",)), num_threads=1)
    assert any("no-such-command" in str(line) for line in lines)
    assert code == 2


ENDLESS = """
import signal, sys, time
def end(number, frame):
    open(sys.argv[1], "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("here", flush=True)
time.sleep(600)
"""


def test_a_task_that_is_given_up_ends_its_process_by_sigterm(monkeypatch, tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "resumable")]
    monkeypatch.setattr("train.cluster.bound", lambda _: command)
    running = run_task(DomainTask("d", ()), num_threads=1)
    assert next(running) == "here"
    process = inspect.getgeneratorlocals(running)["process"]
    running.close()
    assert process.poll() == 143
    assert (tmp_path / "resumable").is_file()


def test_lines_come_with_their_domain_and_a_lost_task_has_failed():
    def lost():
        yield "started"
        raise RuntimeError("the node is gone")

    shown = []
    followed = _Followed({"good": ["one", "two", 0], "bad": lost()}, lambda reference: reference)
    assert followed.codes(lambda *line: shown.append(line)) == {"good": 0, "bad": 1}
    assert [line for name, line in shown if name == "good"] == ["one", "two"]
    assert ("bad", "The task was lost: the node is gone") in shown


def test_several_domains_need_a_cluster(tmp_path):
    app = typer.Typer()
    app.command()(train)
    files = [str(domain(tmp_path, "colours")), str(domain(tmp_path, "shapes"))]
    result = CliRunner().invoke(app, [*files, "--home", str(tmp_path)])
    assert result.exit_code == 2
    assert "`--cluster ray`" in result.output
