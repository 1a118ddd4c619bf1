"""The demo as a process of its own, with commands that take no time: what it runs, what is left when it is ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.run import parity_errors
from loadtest.bench.server import free_port
from tests.loadtest.bench.test_children import ended
from tests.peft_folders import write_base_folder, write_peft_folder
from tests.tracked_files import ROOT

# A shell that starts tests in the background has its children ignore SIGINT.
DEMO = """
import signal
import typer
signal.signal(signal.SIGINT, signal.default_int_handler)
from demo.cli import demo
typer.run(demo)
"""
DOMAIN = """
name: {name}
description: Synthetic.
base: tiny
data: {{source: jsonl, path: none.jsonl, num_train: 4, num_validation: 4, num_test: 40}}
chat: {{system: "Chapter, as JSON."}}
recipe: {{max_steps: 10}}
"""
DOMAINS = ("medical", "finance", "legal")


@dataclass(frozen=True)
class World:
    """A folder with a configuration and a stand-in for our commands."""

    folder: Path

    @property
    def commands(self) -> list[str]:
        return (self.folder / "commands.txt").read_text().splitlines()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "var" / "demo" / "report.json").read_text())
        return found

    @contextmanager
    def start(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        environment = os.environ | {"PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "default"}
        with subprocess.Popen([sys.executable, "-c", DEMO, *options], cwd=self.folder, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()  # or a failed test would wait for it

    def run(self, *options: str) -> tuple[int, str]:
        with self.start(*options) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @contextmanager
    def start_and_wait_for_training(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        (self.folder / "slow").touch()
        with self.start(*options) as process:
            assert process.stdout is not None
            while "training medical" not in (line := process.stdout.readline()):
                assert line, "the demo ended before it trained"
            yield process

    def pid(self, name: str) -> int:
        file = self.folder / f"{name}.pid"
        while not (file.exists() and file.read_text()):
            time.sleep(0.02)
        return int(file.read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter, for the stand-in to hand out."""
    folder = tmp_path_factory.mktemp("made")
    write_base_folder(folder / "base")
    write_peft_folder(folder / "adapter")
    return folder


@pytest.fixture
def world(tmp_path: Path, made: Path) -> World:
    (tmp_path / "made").symlink_to(made)
    (tmp_path / "lorikeet.py").write_text((ROOT / "tests" / "fake_lorikeet.py").read_text())
    (tmp_path / "config" / "domains").mkdir(parents=True)
    for name in DOMAINS:
        (tmp_path / "config" / "domains" / f"{name}.yaml").write_text(DOMAIN.format(name=name))
    (tmp_path / "config" / "serve.yaml").write_text("base: tiny\nserved_model_name: tiny-base\n")
    return World(tmp_path)


@pytest.mark.slow
def test_adapters_are_trained_and_swapped_in_while_the_server_runs(world: World) -> None:
    code, output = world.run()
    assert code == 0, output
    report, starts_s = world.report, {step["name"]: step["start_s"] for step in world.report["steps"]}
    assert starts_s["prepare the base"] < starts_s["start the server"] < starts_s["train medical"]
    assert sum(line.startswith("serve") for line in world.commands) == 1
    assert [swap["served_by"] for swap in report["swaps"]] == ["medical@1", "finance@1", "legal@1"]
    assert report["first_adapter_answer_s"] == report["swaps"][0]["answer_s"] < report["seconds"]
    assert [(d["adapter"], d["n"], d["base"]) for d in report["domains"]] == [(1.0, 80, 0.0)] * 3
    assert all(d["base_n"] < 80 for d in report["domains"])
    assert {one["model"] for one in report["meanwhile"]} <= {"tiny-base", *DOMAINS}
    assert all(one["is_ok"] for one in report["meanwhile"])
    assert ended([world.pid("server")])
    lines = output.splitlines()  # none is broken: there is no terminal
    assert any(line.startswith("First answer of an adapter after") and "report.html" in line for line in lines)
    assert any(line.startswith("curl ") and line.endswith("}'") for line in lines)


@pytest.mark.slow
def test_a_second_demo_trains_nothing_and_asks_again(world: World) -> None:
    world.run()
    code, output = world.run()
    assert code == 0, output
    assert sum(line.startswith("train") for line in world.commands) == 3
    assert not any(swap["is_trained_here"] for swap in world.report["swaps"])
    assert "already evaluated before the interruption" not in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_the_next_demo_goes_on(world: World, number: signal.Signals) -> None:
    with world.start_and_wait_for_training() as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "without --fresh to resume" in output
    assert ended([world.pid("train"), world.pid("server")])
    (world.folder / "slow").unlink()
    code, output = world.run()
    assert code == 0, output
    assert "training medical from its checkpoint" in output
    assert world.commands[-3:] == [
        "train config/domains/medical.yaml --resume",
        "train config/domains/finance.yaml",
        "train config/domains/legal.yaml",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_demo_leaves_nothing_running(world: World) -> None:
    with world.start_and_wait_for_training() as process:
        process.kill()
    assert ended([world.pid("train"), world.pid("server")])


@pytest.mark.slow
def test_fresh_starts_over(world: World) -> None:
    with world.start_and_wait_for_training() as process:
        process.terminate()
        process.communicate(timeout=60)
    (world.folder / "slow").unlink()
    code, output = world.run("--fresh")
    assert code == 0, output
    assert "--resume" not in " ".join(world.commands)


@pytest.mark.slow
def test_an_interrupted_fresh_demo_stays_fresh(world: World) -> None:
    world.run()
    with world.start_and_wait_for_training("--fresh") as process:
        process.terminate()
        process.communicate(timeout=60)
    (world.folder / "slow").unlink()
    code, output = world.run()
    assert code == 0, output
    assert world.commands[-3:] == [
        "train config/domains/medical.yaml --resume",
        "train config/domains/finance.yaml",
        "train config/domains/legal.yaml",
    ]
    assert [swap["served_by"] for swap in world.report["swaps"]] == ["medical@2", "finance@2", "legal@2"]


@pytest.mark.slow
def test_a_version_that_fails_its_gates_ends_the_demo_with_a_reason(world: World) -> None:
    (world.folder / "failing").touch()
    code, output = world.run()
    assert code == 1
    assert "The new version of 'medical' was not promoted" in output
    assert "Traceback" not in output
    assert ended([world.pid("server")])


def test_parity_is_unknown_where_the_server_does_not_answer() -> None:
    assert parity_errors(f"http://127.0.0.1:{free_port()}") == {}
